"""Read IDX files, the format of MNIST and Fashion-MNIST: one array of bytes each, gzipped or not."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from ...errors import BatchNormError
from ...files import open_regular

GZIP_MAGIC = b"\x1f\x8b"
MOST_VALUES = 2**30  # of one file. The largest of the MNIST family, EMNIST by class, has 547 million.


@contextmanager
def unpacked(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file for reading. Decompress it if it is gzipped, whatever its name.

    A kilobyte of gzip may hold a megabyte of zeros, so read no more than is wanted.

    Raises:
        BatchNormError: the file cannot be read, or is truncated. Reading within the block raises it too.
    """
    try:
        with open_regular(path) as file:
            packed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
            file.seek(0)
            yield cast(BinaryIO, gzip.GzipFile(fileobj=file)) if packed else file
    except (EOFError, zlib.error, OSError) as error:
        raise BatchNormError(f"{path} cannot be read: {error}. Copy or download it again.") from error


def read_idx(path: Path) -> np.ndarray:
    """Return the array of one IDX file.

    The file holds two zero bytes, a type (8 for uint8), the number of axes, big-endian sizes, and the values. Only as
    many bytes are read as the sizes announce, and one more to see the end.

    Raises:
        BatchNormError: the file cannot be read, or is not an IDX file of bytes, or is truncated, or announces more than
            2^30 values.
    """
    with unpacked(path) as file:
        shape = _read_shape(path, file)
        wanted = math.prod(shape)
        if wanted > MOST_VALUES:
            raise BatchNormError(f"{path} announces {shape}, {wanted:,} values; wanted at most {MOST_VALUES:,}")
        content = file.read(wanted + 1)
    if len(content) != wanted:
        found = f"{len(content)}: truncated or damaged" if len(content) < wanted else "more: damaged"
        raise BatchNormError(
            f"{path} announces {shape}, {wanted} values, and holds {found}. Copy or download it again."
        )
    try:
        return np.frombuffer(content, np.uint8).reshape(shape)
    except ValueError as error:  # 65 axes, or a size of 0 and others too large for NumPy
        raise BatchNormError(f"{path} announces {shape}: {error}") from error


def _read_shape(path: Path, file: BinaryIO) -> tuple[int, ...]:
    start = file.read(4)
    axes = start[3] if len(start) == 4 and start[:3] == b"\0\0\x08" else 0
    sizes = file.read(4 * axes)
    if axes == 0 or len(sizes) < 4 * axes:
        raise BatchNormError(f"{path} is not an IDX file of bytes: it starts with {start.hex(' ') or 'nothing'}")
    return tuple(int(size) for size in np.frombuffer(sizes, ">u4"))
