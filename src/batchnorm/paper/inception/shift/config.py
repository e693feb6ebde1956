"""The settings of a look at why BN helps. Nothing here imports torch or pydantic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ...training.bounds import Bounds, Count, Positive, Seed, Threads

LAST_LOSSES = 20  # of a training that tries a learning rate. Their mean decides whether it is stable.


@dataclass(frozen=True)
class ShiftConfig:
    """Everything that decides the numbers."""

    data: str = ""
    """Folder of small images with train and val, or fashion or cifar10."""
    steps: Count = 200
    """Mini-batches of 32 that each network trains on."""
    every: Count = 10
    """Steps between two measurements of the drift over one step."""
    rate_steps: Annotated[int, Bounds(LAST_LOSSES, 10**6)] = 100
    """Mini-batches of each training that tries a learning rate."""
    lr: Positive | None = None
    """Learning rate of both networks, which does not decay. By default the plain network's of batchnorm inception."""
    seed: Seed = 1
    """The first seed: of the initial weights, of the order of the images and of their distortions."""
    seeds: Annotated[int, Bounds(1, 1000)] = 3
    """Number of seeds."""
    threads: Threads | None = None
    """CPU threads of torch. One per core by default."""
