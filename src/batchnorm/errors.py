"""The errors that the package raises on purpose, and the parts of their messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class Failure(Exception):
    """Base class of the package's errors. The command prints the message as one line."""


class BatchNormError(Failure, ValueError):
    """Input that the caller can mend. The message says what came, what was wanted and what to do."""


class StorageError(Failure, OSError):
    """A file or folder that cannot be written: the disk is full, or the folder is read-only."""


class DownloadError(Failure, OSError):
    """A failed download. The message says where to put the data by hand."""


class PeerError(Failure, RuntimeError):
    """A failed or dead process of the same `torch.distributed` job."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, without the traces and advice that torch adds."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def first_few(parts: Sequence[str], count: int = 5) -> str:
    """Join the first `count` parts of a message, and say how many more there are."""
    more = [f"and {len(parts) - count} more"] if len(parts) > count else []
    return "; ".join([*parts[:count], *more])


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return a question with the nearest of `names`, to append to a message. Return "" if none is near."""
    found = get_close_matches(name, list(names), n=1)
    return f". Did you mean {found[0]!r}?" if found else ""
