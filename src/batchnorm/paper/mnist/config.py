"""The settings of one MNIST run, and their form in `config.json`. Nothing here imports torch."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import BatchNormError


@dataclass(frozen=True)
class MnistConfig:
    """Everything that decides the numbers of one MNIST run. Both arms share it."""

    steps: int = 50_000
    """Number of mini-batches that each network trains on."""
    batch_size: int = 60
    """Number of images in a mini-batch."""
    lr: float = 0.1
    """Learning rate of plain SGD."""
    std: float = 0.1
    """Standard deviation of the initial weights, which are Gaussian."""
    seed: int = 1
    """Seed of the initial weights and of the order of the mini-batches."""
    eval_every: int = 100
    """Steps between two measurements on the 10,000 test images."""
    threads: int = min(2, os.cpu_count() or 1)
    """CPU threads. With 2, the networks train side by side, each in one thread."""
    data: Path | None = None
    """Folder with four IDX files of your own, gzipped or not. By default the MNIST in the package."""


def config_to_json(config: MnistConfig) -> dict[str, Any]:
    """Return the settings as JSON values. The data's path is absolute: you may resume the run from another folder."""
    return asdict(config) | {"data": str(config.data.resolve()) if config.data else None}


def config_from_json(saved: dict[str, Any]) -> MnistConfig:
    """Return the settings that `config_to_json` wrote.

    Raises:
        BatchNormError: A setting is missing, or this version does not know it.
    """
    try:
        return replace(MnistConfig(**saved), data=Path(saved["data"]) if saved["data"] else None)
    except (TypeError, KeyError) as error:
        raise BatchNormError(f"config.json has other settings than this version of batchnorm: {error}") from error
