"""Fail or kill this process at the n-th call that changes a file below one folder."""

import ctypes
import subprocess
from enum import Enum, IntEnum
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_name("faults.c")


class What(IntEnum):
    """What happens at a call. faults.c has the same numbers."""

    NOTHING = 0
    FULL = 1
    BROKEN = 2
    KILL_BEFORE = 3
    KILL_AFTER = 4
    TORN = 5


class Loss(Enum):
    """What the file system had not yet brought to the disk."""

    NONE = "the system goes on"
    CONTENT = "every write that no fsync followed"
    NAMES = "these, and every new or changed name that no fsync of its folder followed"


class Fault(NamedTuple):
    """A call that fails, or a kill beside it, and what the disk loses then."""

    what: What
    loss: Loss = Loss.NONE


FAULTS = {
    "ENOSPC": Fault(What.FULL),
    "EIO": Fault(What.BROKEN),
    "SIGKILL before": Fault(What.KILL_BEFORE),
    "SIGKILL after": Fault(What.KILL_AFTER),
    "SIGKILL within": Fault(What.TORN),
    "power, content lost": Fault(What.KILL_BEFORE, Loss.CONTENT),
    "power, names lost": Fault(What.KILL_BEFORE, Loss.NAMES),
}


class Call(NamedTuple):
    """One call. `inode` and `size` are those of a file that was there before."""

    number: int
    name: str
    inode: int
    size: int
    path: Path
    to: Path


def build(library: Path) -> None:
    """Compile the library that LD_PRELOAD loads."""
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-o", library, SOURCE, "-ldl"], check=True)


def watch(folder: Path, log: Path, backups: Path, what: What, point: int) -> None:
    """Count this process's calls below `folder` from now on. Apply `what` at call `point`, counted from 1."""
    arguments = [str(path).encode() for path in (folder, log, backups)]
    ctypes.CDLL(None).faults_watch(*arguments, int(what), ctypes.c_long(point))


def read_calls(log: Path) -> list[Call]:
    """Return the calls in the order of their numbers."""
    lines = [line.split("\t") for line in log.read_text().splitlines()] if log.exists() else []
    calls = [Call(int(n), name, int(inode), int(size), Path(a), Path(b)) for n, name, inode, size, a, b in lines]
    return sorted(calls)
