"""Write a file atomically."""

from __future__ import annotations

from pathlib import Path

from ...errors import StorageError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write `content` to a temporary file, then rename it to `path`.

    A reader finds the old file or the new one, even after a kill, but never a part of either.

    Raises:
        StorageError: The disk is full or the folder read-only.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error}") from error
