"""Take from a folder what a file system may lose with the power.

POSIX promises the content of a file after its fsync, and its name after an fsync of its folder.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from torture.faults import Call, Loss


def lose_power(watched: Path, backups: Path, calls: list[Call], before: dict[int, int], loss: Loss) -> None:
    """Undo what was not synced.

    Arguments:
        watched: The folder that was watched.
        backups: The files that renames replaced, by the number of the call.
        calls: The calls that were made, without the one at which the power failed.
        before: Sizes, by inode, of the files that were there before.
        loss: What is lost.
    """
    if loss is not Loss.NONE:
        _lose_content([watched, backups], calls, before)
    if loss is Loss.NAMES:
        for call in reversed(calls):
            if not name_is_synced(call, calls):
                _undo(call, backups)


def _lose_content(folders: Iterable[Path], calls: list[Call], before: dict[int, int]) -> None:
    safe = dict(before)
    for call in calls:
        if call.name in ("sync", "empty"):
            safe[call.inode] = call.size if call.name == "sync" else 0
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        status = path.stat()
        os.truncate(path, min(status.st_size, safe.get(status.st_ino, 0)))


def name_is_synced(call: Call, calls: list[Call]) -> bool:
    """Return True if the name that `call` gave is on the disk after `calls`."""
    folder = (call.to if call.name == "rename" else call.path).parent
    return any(later.name == "sync" and later.path == folder for later in calls[call.number :])


def _undo(call: Call, backups: Path) -> None:
    backup = backups / str(call.number)
    if call.name == "create":
        call.path.unlink()
    elif call.name == "mkdir":
        call.path.rmdir()
    elif call.name == "rename":
        call.to.rename(call.path)
        if backup.exists():
            backup.rename(call.to)
