"""`Profile`: the values of one layer, channel by channel, as the page shows them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..torch_private import AnyBatchNorm
from .measurement import Measured


class Profile(NamedTuple):
    """Hold numbers per channel, and the distance of eval from training in one number.

    Arguments:
        mean, std: of the data.
        running_mean, running_std: what eval uses, or empty.
        gamma, beta: or empty.
        dead: the channels whose output is one constant, before any activation.
        gap: the root mean square over channels of what the normalized input in eval has more or less than in training:
            mean 0 and its own deviation.
    """

    mean: list[float]
    std: list[float]
    running_mean: list[float]
    running_std: list[float]
    gamma: list[float]
    beta: list[float]
    dead: list[int]
    gap: float | None


def profile_of(layer: AnyBatchNorm, measured: Measured) -> Profile:
    """Return the profile of a layer."""
    mean, var = layer.running_mean, layer.running_var
    return Profile(
        mean=measured.mean.tolist(),
        std=measured.var.sqrt().tolist(),
        running_mean=_listed(mean),
        running_std=_listed(None if var is None else var.detach().double().clamp_min(0).sqrt()),
        gamma=_listed(layer.weight),
        beta=_listed(layer.bias),
        dead=(measured.low == measured.high).nonzero().flatten().tolist(),
        gap=None if mean is None or var is None else _gap(layer, measured, mean, var),
    )


def _listed(values: Tensor | None) -> list[float]:
    return [] if values is None else values.detach().double().tolist()


@torch.no_grad()
def _gap(layer: AnyBatchNorm, measured: Measured, mean: Tensor, var: Tensor) -> float:
    """Compare the input of eval, normalized by the running statistics, with that of training by the batch."""
    std = (var.to(measured.mean) + layer.eps).sqrt()
    shift = (measured.in_eval.mean - mean.to(measured.mean)) / std
    scale = measured.in_eval.var(unbiased=False).sqrt() / std - (measured.var / (measured.var + layer.eps)).sqrt()
    gap = float((shift.square() + scale.square()).mean().sqrt())
    return gap if math.isfinite(gap) else math.inf
