"""Prove that the statistics are the cause: eval before and after recalibration, on a copy, against training."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import mean, stdev
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..algorithm2.observation import on_batch_statistics
from ..graph.batches import in_eval
from ..torch_private import AnyBatchNorm, pytree
from .inputs import loss_of, run
from .measurement import tracked

APART = 0.1  # of outputs, relative to their spread over examples; of losses, relative to the loss
_STANDARD_ERRORS = 3.0  # of the mean difference of the losses, paired by batch


class Proof(NamedTuple):
    """Hold what each batch gave in eval mode, in eval mode after recalibration, and normalizing by the batch.

    Arguments:
        losses: per batch (before, after, training), or empty without a loss.
        gap_before: the distance of the eval outputs from those in training, relative to the spread of the latter.
        gap_after: the same after recalibration.
    """

    losses: list[tuple[float, float, float]]
    gap_before: float
    gap_after: float

    @property
    def gain(self) -> float:
        """Return the mean loss before minus after."""
        return mean(before - after for before, after, _ in self.losses)

    @property
    def error(self) -> float:
        """Return the standard error of `gain`; a tenth of the loss where there are too few batches for one."""
        differences = [before - after for before, after, _ in self.losses]
        if len(differences) < 3 or not all(map(math.isfinite, differences)):
            return abs(mean(after for _, after, _ in self.losses)) * APART / _STANDARD_ERRORS
        return stdev(differences) / math.sqrt(len(differences))

    @property
    def helps(self) -> bool:
        """Return True if eval is worse than after recalibration, by more than chance and by more than a little."""
        if self.losses:
            after = mean(loss for _, loss, _ in self.losses)
            return not self.gain <= max(_STANDARD_ERRORS * self.error, APART * abs(after))
        return not self.gap_before <= max(2 * self.gap_after, self.gap_after + APART)

    @property
    def harms(self) -> bool:
        """Return True if the loss after recalibration is worse by more than chance and by more than a little."""
        if not self.losses:
            return False
        before = mean(loss for loss, _, _ in self.losses)
        return -self.gain > max(_STANDARD_ERRORS * self.error, APART * abs(before))

    def __str__(self) -> str:
        if self.losses:
            before, after, training = (mean(values) for values in zip(*self.losses, strict=True))
            return f"loss {before:.4g} in eval, {after:.4g} after recalibration, {training:.4g} by batch statistics"
        return (
            f"outputs in eval are {self.gap_before:.2g} of their spread from those by batch statistics, "
            f"{self.gap_after:.2g} after recalibration"
        )


@torch.no_grad()
def prove(
    model: nn.Module,
    recalibrated: nn.Module,
    kept: set[str],
    batches: list[Any],
    loss: Callable[[Any, Any], Tensor] | None,
) -> Proof | None:
    """Run the batches through the network in its three states. Return None without a loss and numbers in the output."""
    layers = {name: layer for name, layer in recalibrated.named_modules() if isinstance(layer, AnyBatchNorm)}
    losses: list[tuple[float, float, float]] = []
    squares = torch.zeros(3, dtype=torch.float64)
    for batch in batches:
        with in_eval(model):
            before = run(model, batch)
        with in_eval(recalibrated):
            after = run(recalibrated, batch)
        with on_batch_statistics(recalibrated, tracked(layers, kept)):
            training = run(recalibrated, batch)
        squares += _squares(before, after, training)
        if loss is not None:
            values = [float(loss_of(loss, batch, output)) for output in (before, after, training)]
            losses.append((values[0], values[1], values[2]))
    if not losses and not squares[2] > 0:
        return None
    before, after = (squares[:2] / squares[2]).sqrt().nan_to_num(math.inf).tolist()
    return Proof(losses, before, after)


def _squares(before: Any, after: Any, training: Any) -> Tensor:
    """Return the squared distances of before and after from training, and the spread of the latter over examples.

    Of a single example it is the spread over its values.
    """
    total = torch.zeros(3, dtype=torch.float64)
    for one, two, three in zip(*(pytree.tree_leaves(each) for each in (before, after, training)), strict=False):
        if _comparable(one, two, three):
            one, two, three = (each.detach().double().cpu() for each in (one, two, three))
            spread = (three - (three.mean(0) if len(three) > 1 else three.mean())).square().sum()
            total += torch.stack([(one - three).square().sum(), (two - three).square().sum(), spread])
    return total


def _comparable(one: Any, two: Any, three: Any) -> bool:
    """Return True for three tensors of numbers of one shape. Detections are some more or fewer in each."""
    same = all(isinstance(each, Tensor) and each.is_floating_point() for each in (one, two, three))
    return same and bool(three.dim()) and one.shape == two.shape == three.shape
