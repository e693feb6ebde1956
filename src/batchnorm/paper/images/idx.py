"""IDX files, in which MNIST and Fashion-MNIST come: one array of bytes each, gzipped or not."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from ...errors import BatchNormError


def unpacked(path: Path) -> bytes:
    """The content of a file, gzipped or not.

    Raises:
        BatchNormError: it can't be read, or is truncated.
    """
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content  # gzip, whatever its name
    except (EOFError, zlib.error, OSError) as error:
        raise BatchNormError(f"{path} cannot be read: {error}. Copy or download it again.") from error


def read_idx(path: Path) -> np.ndarray:
    """The array of one IDX file: two zero bytes, a type (8 is uint8), the number of axes, big-endian sizes, values."""
    content = unpacked(path)
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
