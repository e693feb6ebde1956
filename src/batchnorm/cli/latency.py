"""The latency of networks, measured side by side."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

import torch
from torch import Tensor, nn

ROUNDS = 20
WARM_UP = 3


@torch.no_grad()
def latencies(models: Sequence[nn.Module], example: Tensor) -> list[float]:
    """Return the median seconds of one call of each model. The calls alternate, after a warm-up."""
    seconds: list[list[float]] = [[] for _ in models]
    for turn in range(WARM_UP + ROUNDS):
        for model, taken in zip(models, seconds, strict=True):
            started = time.perf_counter()
            model(example)
            if turn >= WARM_UP:
                taken.append(time.perf_counter() - started)
    return [median(taken) for taken in seconds]
