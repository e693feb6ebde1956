"""Declare the fields of the records of Sec. 4.2: rows of a training, rows of an evaluation, and checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ..training.bounds import Bounds, Count, Finite, Share, Step
from ..training.checkpoint import Header


@dataclass(frozen=True)
class TrainingFields:
    """The fields of one measurement. The row of a divergence has the first three alone."""

    step: Step
    loss: Finite | None
    diverged: bool = False
    epoch: Annotated[float, Bounds(0.0, 1e12)] = 0.0
    lr: Annotated[float, Bounds(0.0, 1e36)] = 0.0
    waited: Share = 0.0
    top1: Share | None = None
    top5: Share | None = None


@dataclass(frozen=True)
class EvaluationFields:
    """The fields of one evaluated run or ensemble."""

    name: str
    runs: tuple[str, ...]
    crops: Count
    size: Count
    folded: bool
    images: Count
    top1: Share
    top5: Share


@dataclass(frozen=True, kw_only=True)
class TrainingHeader(Header):
    """What a checkpoint has beside its tensors."""

    classes: tuple[str, ...]
    channels: Annotated[int, Bounds(1, 1024)]
    processes: Annotated[int, Bounds(1, 10**6)] = 1
