"""Check the settings of an experiment: those of the command line, and those that a run folder kept."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from ...errors import BatchNormError
from .validation import checked, shown

Config = TypeVar("Config")
# Settings that decide no number of a run, or that depend on the machine: they may be edited in config.json.
MOVABLE = ("data", "threads", "workers", "checkpoint_minutes", "max_damaged")


def check_settings(config: Any) -> None:
    """Check the settings of a command line.

    Raises:
        BatchNormError: the first setting that is of another type or out of bounds. The message names its option.
    """
    checked(type(config), json_values(config), "", lambda field: f"--{field.replace('_', '-')}")


def saved_settings(kind: type[Config], saved: dict[str, Any], file: Path, *names: str) -> Config:
    """Return the settings that a run folder kept.

    Arguments:
        kind: the dataclass of the settings.
        saved: the content of config.json. A run of version 0.1.0 has no `digest`.
        file: the path of config.json, for the messages.
        names: what `digest` was given.

    Raises:
        BatchNormError: a setting is missing, unknown, of another type or out of bounds, or was edited.
    """
    known = [field.name for field in fields(kind)]  # pyright: ignore[reportArgumentType]  (a dataclass)
    values = {name: value for name, value in saved.items() if name != "digest"}
    for name in (*known, *values):
        if name not in values or name not in known:
            fault = f"lacks {name!r}" if name in known else f"has {name!r} = {shown(values[name])}"
            raise BatchNormError(f"{file} has other settings than this version of batchnorm: it {fault}")
    config = checked(kind, values, str(file))
    if "digest" in saved and saved["digest"] != digest(config, *names):
        deciding = ", ".join(name for name in known if name not in MOVABLE)
        raise BatchNormError(
            f"{file} was edited after the run began: its digest {shown(saved['digest'])} is that of other settings. "
            f"Restore {deciding}, or start a new run"
        )
    return config


def digest(config: Any, *names: str) -> str:
    """Return a digest of `names`, such as the experiment's, and of the settings that decide its numbers."""
    same = checked(type(config), json_values(config), "settings")  # 1 and 1.0 are one learning rate
    deciding = {name: value for name, value in json_values(same).items() if name not in MOVABLE}
    return sha256(json.dumps([names, deciding], sort_keys=True).encode()).hexdigest()[:16]


def json_values(config: Any) -> dict[str, Any]:
    """Return the settings as JSON values, paths as strings."""
    return json.loads(json.dumps(asdict(config), default=str))
