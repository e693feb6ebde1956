"""What the settings of every experiment are checked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ...errors import BatchNormError


def check_settings(config: object, smallest: Mapping[str, int], positive: Iterable[str]) -> None:
    """Check settings by name: the least that each of `smallest` may be, and those that are positive and finite.

    Those that are None are not checked.

    Raises:
        BatchNormError: the first that can't be run, by the name that its option has.
    """
    for name, least in smallest.items():
        value = getattr(config, name)
        if value is not None and value < least:
            raise BatchNormError(f"{name.replace('_', '-')} must be at least {least}; got {value}")
    for name in positive:
        value = getattr(config, name)
        if value is not None and not 0 < value < float("inf"):
            raise BatchNormError(f"{name.replace('_', '-')} must be a positive number; got {value}")
