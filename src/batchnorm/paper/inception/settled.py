"""The settings of one run with every value chosen: what the user gave, else what suits the data and the variant."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ...errors import BatchNormError
from ..training.bounds import Count, Positive
from ..training.settings import check_settings, digest
from .config import DecayEvery, InceptionConfig, Size, Width
from .network import Inception
from .presets import PRESETS, preset
from .variants import Variant

EXPERIMENT = "inception"


@dataclass(frozen=True)
class Settled(InceptionConfig):
    """The settings of one run with every value chosen. `settled` makes them."""

    steps: Count = field(kw_only=True)
    lr: Positive = field(kw_only=True)
    decay_every: DecayEvery = field(kw_only=True)
    eval_every: Count = field(kw_only=True)
    size: Size = field(kw_only=True)
    width: Width = field(kw_only=True)
    modules: tuple[str, ...] = field(kw_only=True)

    @property
    def memory_format(self) -> torch.memory_format:
        """The memory format of images and feature maps."""
        return torch.channels_last if self.channels_last else torch.contiguous_format


def settled(config: InceptionConfig, variant: Variant) -> Settled:
    """Return the settings with every value chosen.

    Raises:
        BatchNormError: the first setting that is of another type or out of bounds.
    """
    if not config.data:
        raise BatchNormError(f"name the images: --data FOLDER, or one of {', '.join(PRESETS)}")
    check_settings(config)
    given = {name: value for name, value in vars(config).items() if value is not None}
    chosen = Settled(**{**_defaults(config, variant), **given})
    check_network(chosen)
    return chosen


def check_network(config: Settled) -> None:
    """Raise BatchNormError if the network cannot be built from its size, width and modules."""
    with torch.device("meta"):  # on this device it takes no memory
        Inception(size=config.size, width=config.width, modules=config.modules)


def run_digest(config: Settled, variant: Variant) -> str:
    """Return the digest of what decides the numbers of a run."""
    return digest(config, EXPERIMENT, variant.name)


def _defaults(config: InceptionConfig, variant: Variant) -> dict[str, object]:
    """Return the values that suit the data and the variant, for the settings that may be None."""
    chosen = preset(config.data, variant)._asdict()
    steps = config.steps if config.steps is not None else chosen["steps"]
    return {**chosen, "eval_every": max(1, steps // 50)}
