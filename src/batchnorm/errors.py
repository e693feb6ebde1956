"""The one error type of the package."""

from __future__ import annotations

from collections.abc import Sequence


class BatchNormError(ValueError):
    """Input that `batchnorm` cannot work with: says what came, what was wanted and what to do."""


def first_line(error: Exception) -> str:
    """What an error says, without the traces and advice that torch adds."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def first_few(parts: Sequence[str], count: int = 5) -> str:
    """The first of many parts of a message, and how many more there are."""
    more = [f"and {len(parts) - count} more"] if len(parts) > count else []
    return "; ".join([*parts[:count], *more])
