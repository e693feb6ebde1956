"""The recipe of Sec. 4.2.1, which makes batch normalization pay, as one function of a training config."""

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
    """Return a new training config, changed as a batch-normalized network allows (Sec. 4.2.1).

    | setting | becomes |
    |---|---|
    | `lr` or `learning_rate` | `times` the old one |
    | `dropout` | 0 |
    | `weight_decay` (the L2 weight) | a fifth |
    | `decay_every` (the time between two decays of the learning rate) | a sixth |
    | `lrn` (local response normalization) | False |
    | `within_shard_shuffle` (thorough shuffling) | True |
    | `distortion` ("strong", "weak" or "none") | "weak", from "strong" |

    Only settings that the config has are changed. All others stay. A setting of yours with another name is for you to
    change.

    Arguments:
        config: a dataclass instance or a mapping of settings, such as a dict. It is not changed.
        times: factor on the learning rate. The paper takes 5 and 30.

    Returns:
        A new config of the same type.

    Raises:
        BatchNormError: the config is neither, or has no learning rate; a rate or time is not a number; `times` is not
            positive.

    Example:
        >>> from batchnorm.paper.inception.recipe import accelerate
        >>> accelerate({"lr": 0.1, "dropout": 0.5, "epochs": 90}, times=5)
        {'lr': 0.5, 'dropout': 0.0, 'epochs': 90}
    """
    settings = _settings(config)
    _check(settings, times)
    changes = {name: value for name, value in _recipe(settings, times).items() if name in settings}
    if isinstance(config, MutableMapping):
        changed = copy(config)  # The constructor of a defaultdict, for example, does not take a dict.
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


def _check(settings: dict[str, Any], times: float) -> None:
    if not 0 < times < float("inf"):
        raise BatchNormError(f"times must be a positive factor on the learning rate; got {times}")
    rates = [name for name in LEARNING_RATES if name in settings]
    if not rates:
        raise BatchNormError(
            f"accelerate wants a config with a setting named {' or '.join(LEARNING_RATES)}; "
            f"this one has {', '.join(settings) or 'none'}"
        )
    for name in (*rates, "weight_decay", "decay_every"):
        if not isinstance(settings.get(name, 0.0), Real):
            raise BatchNormError(f"{name} must be a number; got {settings[name]!r}")


def _recipe(settings: dict[str, Any], times: float) -> dict[str, Any]:
    """Return the new value of every setting that the recipe knows, whether the config has it or not."""
    return {
        **{name: settings.get(name, 0) * times for name in LEARNING_RATES},
        "dropout": 0.0,
        "weight_decay": settings.get("weight_decay", 0) / 5,
        "decay_every": settings.get("decay_every", 0) / 6,
        "lrn": False,
        "within_shard_shuffle": True,
        "distortion": "weak" if settings.get("distortion") == "strong" else settings.get("distortion"),
    }
