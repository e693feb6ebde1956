"""Check the ranges of an experiment's settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ...errors import BatchNormError


def check_settings(config: object, smallest: Mapping[str, int], positive: Iterable[str]) -> None:
    """Raise for the first setting that is out of range, and name its option. Settings that are None pass.

    Arguments:
        config: An object with the settings as attributes.
        smallest: The smallest value of each of these settings.
        positive: Settings that must be positive and finite.

    Raises:
        BatchNormError: A setting is out of range.
    """
    for name, least in smallest.items():
        value = getattr(config, name)
        if value is not None and value < least:
            raise BatchNormError(f"{name.replace('_', '-')} must be at least {least}; got {value}")
    for name in positive:
        value = getattr(config, name)
        if value is not None and not 0 < value < float("inf"):
            raise BatchNormError(f"{name.replace('_', '-')} must be a positive number; got {value}")
