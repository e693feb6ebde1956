"""Read IDX files, the format of MNIST and Fashion-MNIST: one array of bytes each, gzipped or not."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from ...errors import BatchNormError

GZIP_MAGIC = b"\x1f\x8b"


def unpack(path: Path) -> bytes:
    """Return the content of a file. Decompress it if it is gzipped, whatever its name.

    Raises:
        BatchNormError: The file cannot be read, or is truncated.
    """
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content.startswith(GZIP_MAGIC) else content
    except (EOFError, zlib.error, OSError) as error:
        raise BatchNormError(f"{path} cannot be read: {error}. Copy or download it again.") from error


def read_idx(path: Path) -> np.ndarray:
    """Return the array of one IDX file.

    The file holds two zero bytes, a type (8 for uint8), the number of axes, big-endian sizes, and the values.

    Raises:
        BatchNormError: The file cannot be read, or is not an IDX file of bytes, or is truncated.
    """
    content = unpack(path)
    axes = content[3] if len(content) >= 4 and content[:3] == b"\0\0\x08" else 0
    header = 4 + 4 * axes
    if axes == 0 or len(content) < header:
        raise BatchNormError(f"{path} is not an IDX file of bytes: it starts with {content[:4].hex(' ') or 'nothing'}")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", axes, offset=4))
    wanted = math.prod(shape)
    if len(content) - header != wanted:
        raise BatchNormError(
            f"{path} announces {shape}, {wanted} values, and holds {len(content) - header}: "
            "truncated or damaged. Copy or download it again."
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
