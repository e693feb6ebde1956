"""Write files so that a kill, a full disk or a power loss leaves the old content or the new.

A file system brings content and names to the disk in any order. So the content is synced before a rename, and the
folder, which holds the names, after it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .errors import StorageError

_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP}  # some network file systems


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write `content` to a temporary file, then rename it to `path`.

    A reader finds the old file or the new one, even after a kill or a power loss, but never a part of either.

    Raises:
        StorageError: the disk is full or the folder read-only.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with synced(partial) as file:
            file.write(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error}") from error


@contextmanager
def synced(path: Path) -> Iterator[BinaryIO]:
    """Open a new file for writing. At the end its content is on the disk. If writing fails, remove the file."""
    try:
        with path.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise


def sync_file(path: Path) -> None:
    """Bring the content of a file to the disk."""
    with path.open("ab") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk: those of new and of renamed files."""
    if os.name == "nt":  # Windows cannot open a folder
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(number)


def make_folder(folder: Path) -> None:
    """Create a folder and its parents. At the end their names are on the disk. The folder may exist."""
    if not folder.parent.exists():
        make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)
