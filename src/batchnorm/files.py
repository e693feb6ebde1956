"""Read files that others made: regular files alone, and no more bytes than stated.

Opening a FIFO waits without end, and a device such as /dev/zero gives bytes without end. A link to a regular file is
followed.
"""

from __future__ import annotations

import os
import stat
from io import BufferedReader
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from .errors import BatchNormError

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
# Absent on Windows. Without O_NONBLOCK, opening a FIFO waits for its writer.
_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY"))


def is_regular(path: Path) -> bool:
    """Return True if `path` is a regular file or a link to one. A name that the system refuses is none."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def check_regular(path: Path) -> os.stat_result:
    """Return the status of a regular file.

    Raises:
        BatchNormError: there is no such file, or it is a folder, a FIFO, a socket or a device.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    _check(path, status)
    return status


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading. The check is on the opened file, so it cannot be swapped meanwhile.

    Raises:
        BatchNormError: there is no such file, it cannot be read, or it is no regular file.
    """
    try:
        number = os.open(path, _FLAGS)
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        _check(path, os.fstat(number))
    except BatchNormError:
        os.close(number)
        raise
    return os.fdopen(number, "rb")


def read_regular(path: Path, most: int) -> bytes:
    """Return the content of a regular file.

    Raises:
        BatchNormError: as `open_regular`, or the file has more than `most` bytes.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise BatchNormError(f"{path} has {size:,} bytes; wanted at most {most:,}")
        try:
            return file.read(most)
        except OSError as error:
            raise _unreadable(path, error) from error


def check_unpacked(path: Path) -> None:
    """Check that a zip file is not compressed. torch and NumPy write theirs so; compressed, it may hold terabytes.

    Files of other formats pass.

    Raises:
        BatchNormError: as `open_regular`, or the zip file unpacks to more bytes than it has.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            with ZipFile(file) as archive:
                unpacked = sum(member.file_size for member in archive.infolist())
        except (BadZipFile, OSError, ValueError, NotImplementedError):
            return
    if unpacked > size:
        raise BatchNormError(f"{path} is compressed: its {size:,} bytes unpack to {unpacked:,}; write it uncompressed")


def _check(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise BatchNormError(f"{path} is {kind}; wanted a regular file")


def _unreadable(path: Path, error: OSError) -> BatchNormError:
    return BatchNormError(f"{path} cannot be read: {error.strerror or error}")
