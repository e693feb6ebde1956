"""What makes batch normalization pay: the recipe of Sec. 4.2.1, as one function of a training config."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from copy import copy
from dataclasses import fields, is_dataclass, replace
from numbers import Real
from typing import Any, TypeVar, cast

from ...errors import BatchNormError

Config = TypeVar("Config")

LEARNING_RATES = ("lr", "learning_rate")


def accelerate(config: Config, times: float = 5) -> Config:
    """The config of a batch-normalized network, trained faster (Sec. 4.2.1).

    | setting | becomes |
    |---|---|
    | `lr` or `learning_rate` | `times` the old one |
    | `dropout` | 0 |
    | `weight_decay` (the L2 weight) | a fifth |
    | `decay_every` (the time between two decays of the learning rate) | a sixth |
    | `lrn` (local response normalization) | False |
    | `within_shard_shuffle` (thorough shuffling) | True |
    | `distortion` ("strong", "weak" or "none") | "weak", from "strong" |

    Settings that the config does not have, and all that it has besides, stay as they are: what the recipe names and
    your training calls by another name is yours to change.

    Arguments:
        config: a dataclass instance or a mapping (a dict, say) of settings; it is not changed.
        times: factor on the learning rate; the paper takes 5 and 30.

    Returns:
        A new config of the same type.

    Raises:
        BatchNormError: the config is neither, has no learning rate or one that is no number; `times` is not positive.
    """
    settings = _settings(config)
    if not 0 < times < float("inf"):
        raise BatchNormError(f"times must be a positive factor on the learning rate; got {times}")
    names = [name for name in LEARNING_RATES if name in settings]
    if not names:
        raise BatchNormError(
            f"accelerate wants a config with a setting named {' or '.join(LEARNING_RATES)}; "
            f"this one has {', '.join(settings) or 'none'}"
        )
    for name in (*names, "weight_decay", "decay_every"):
        if not isinstance(settings.get(name, 0.0), Real):
            raise BatchNormError(f"{name} must be a number; got {settings[name]!r}")
    recipe = {
        **{name: settings[name] * times for name in names},
        "dropout": 0.0,
        "weight_decay": settings.get("weight_decay", 0) / 5,
        "decay_every": settings.get("decay_every", 0) / 6,
        "lrn": False,
        "within_shard_shuffle": True,
        "distortion": "weak" if settings.get("distortion") == "strong" else settings.get("distortion"),
    }
    changes = {name: value for name, value in recipe.items() if name in settings}
    if isinstance(config, MutableMapping):
        changed = copy(config)  # a defaultdict, say, can't be made of a dict
        changed.update(changes)
        return changed
    if isinstance(config, Mapping):
        return cast(Config, type(config)({**config, **changes}))  # pyright: ignore[reportCallIssue]
    return replace(config, **changes)  # pyright: ignore[reportArgumentType]


def _settings(config: object) -> dict[str, Any]:
    if isinstance(config, Mapping):
        return dict(config)
    if is_dataclass(config) and not isinstance(config, type):
        return {field.name: getattr(config, field.name) for field in fields(config)}
    raise BatchNormError(f"accelerate takes a dataclass instance or a mapping of settings; got {type(config).__name__}")
