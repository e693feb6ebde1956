"""The small networks for small images: one row for each data set. A folder of small images takes CIFAR-10's."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from ...errors import BatchNormError
from .config import InceptionConfig
from .network import MODULES, SMALL
from .variants import DECAY_EVERY, INCEPTION, Variant


class Preset(NamedTuple):
    """The settings that suit one data set: the network's, and those of the plain network's training.

    The learning rate is the plain network's best in the sweep of the data set's record. `decay_every` is in epochs: the
    plain network's rate decays 16 times in the default run, and that of the recipe 96 times.
    """

    size: int
    width: float
    modules: tuple[str, ...]
    lr: float
    decay_every: float
    steps: int


PRESETS = {
    "fashion": Preset(28, 1 / 8, SMALL, lr=0.04, decay_every=0.1, steps=3_000),
    "cifar10": Preset(32, 1 / 8, SMALL, lr=0.04, decay_every=0.48, steps=12_000),
}


def preset(data: str, variant: Variant) -> Preset:
    """Return the preset of named data, otherwise the paper's full-size network."""
    return PRESETS.get(data) or Preset(224, 1.0, MODULES, INCEPTION.lr, DECAY_EVERY, variant.steps)


def with_small_network(config: InceptionConfig) -> InceptionConfig:
    """Return the config of a folder with CIFAR-10's preset, for the settings that are None.

    Raises:
        BatchNormError: the data is not a folder, but has a preset of its own.
    """
    if config.data in PRESETS:
        raise BatchNormError(f"--data {config.data} has a small network already; --small is for a folder")
    missing = {name: value for name, value in PRESETS["cifar10"]._asdict().items() if getattr(config, name) is None}
    return replace(config, **missing)
