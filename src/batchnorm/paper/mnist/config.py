"""The settings of one MNIST run, and their form in `config.json`. Nothing here imports torch or pydantic."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from ..training.bounds import Bounds, Count, Positive, Seed, Threads

ARMS_AT_ONCE = min(2, os.cpu_count() or 1)


@dataclass(frozen=True)
class MnistConfig:
    """Everything that decides the numbers of one MNIST run. Both arms share it."""

    steps: Count = 50_000
    """Number of mini-batches that each network trains on."""
    batch_size: Annotated[int, Bounds(2, 10**6)] = 60
    """Number of images in a mini-batch."""
    lr: Positive = 0.1
    """Learning rate of plain SGD."""
    std: Positive = 0.1
    """Standard deviation of the initial weights, which are Gaussian."""
    seed: Seed = 1
    """Seed of the initial weights and of the order of the mini-batches."""
    eval_every: Count = 100
    """Steps between two measurements on the 10,000 test images."""
    threads: Threads = ARMS_AT_ONCE
    """CPU threads. With 2, the networks train side by side, each in one thread."""
    data: Path | None = None
    """Folder with four IDX files of your own, gzipped or not. By default the MNIST in the package."""


def config_to_json(config: MnistConfig) -> dict[str, Any]:
    """Return the settings as JSON values. The data's path is absolute: you may resume the run from another folder."""
    return asdict(config) | {"data": str(config.data.resolve()) if config.data else None}
