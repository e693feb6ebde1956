"""Compare two sets of statistics of one layer, channel by channel, in standard errors and in standard deviations."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..torch_private import AnyBatchNorm
from .measurement import Measured
from .significance import z_of_t

_CONSTANT = 1e-9  # of the other sample's variance: a channel that hardly varies is constant
_CAREFUL = 0.9  # quantile of the noise of a layer's channels: none is taken to be calmer than that


@dataclass(frozen=True, eq=False)
class Discrepancy:
    """Hold the distance between two sets of statistics, (C,) each.

    Arguments:
        shift: |difference of the means| in standard deviations, the larger of the two.
        ratio: log of the ratio of the standard deviations, running (or other) over measured.
        distance: the larger of the two differences, in standard errors, as a normal deviate.
    """

    shift: Tensor
    ratio: Tensor
    distance: Tensor

    @property
    def effect(self) -> Tensor:
        """Return the larger of shift and |ratio|, (C,): 0.25 is a quarter of a standard deviation, or 28 % of one."""
        return torch.maximum(self.shift, self.ratio.abs())

    def off(self, limit: float, threshold: float) -> Tensor:
        """Return the channels, (C,) bool, that are over `limit` standard errors and over `threshold` in effect.

        What is not finite is off.
        """
        good = (self.distance <= limit) | (self.effect <= threshold)
        return ~good


def against_running(measured: Measured, layer: AnyBatchNorm) -> Discrepancy:
    """Compare the running statistics of a layer with the data's.

    The standard error has two parts. The batches given are a sample: clusters.py. The running statistics are one too:
    with momentum m they average about (2 - m) / m batches, and never more than `num_batches_tracked`.
    """
    running_mean, running_var = layer.get_buffer("running_mean"), layer.get_buffer("running_var")
    examples = max(measured.means.examples.count, 1)
    size = examples / max(measured.means.batches, 1)
    share = _share_of_a_batch(layer) / size
    return _compare(measured, running_mean.double(), running_var.double(), share, layer.eps)


def between(one: Measured, other: Measured, eps: float) -> Discrepancy:
    """Compare the statistics of `other` data with those of `one`."""
    return _compare(one, other.mean, other.var, 1 / max(other.means.examples.count, 1), eps)


def _compare(measured: Measured, mean: Tensor, var: Tensor, of_other: float, eps: float) -> Discrepancy:
    """Compare with the mean and variance of another sample. `of_other` is 1 over the number of its examples."""
    mean, var = mean.to(measured.mean), var.to(measured.var)
    examples = max(measured.means.examples.count, 1)
    share = 1 / examples + of_other
    larger = torch.maximum(var, measured.var).clamp_min(0)
    floor = torch.finfo(measured.dtype).eps * measured.mean.abs()  # what rounding of the input alone makes
    growth = (larger / measured.var).nan_to_num(1.0, 1.0, 1.0)  # of the noise, if the other set is the true one
    error_of_mean = (measured.means.spread() * growth * measured.means.design_effect() * share + floor.square()).sqrt()
    noise = (measured.variances.spread() * measured.variances.design_effect()).sqrt() / measured.var
    noise = _careful(noise)
    shift = (mean - measured.mean).abs() / (larger + eps).sqrt()
    ratio = 0.5 * ((var.clamp_min(0) + eps + floor.square()) / (measured.var + eps + floor.square())).log()
    # A variance is a mean of squares: its logarithm is nearer to a normal law than itself.
    t_of_var = 2 * ratio.abs() / (noise * math.sqrt(share)).clamp_min(1e-300)
    t = torch.maximum((mean - measured.mean).abs() / error_of_mean.clamp_min(1e-300), t_of_var)
    distance = z_of_t(t, float(measured.means.degrees))
    least = floor.square() + _CONSTANT * larger
    few = _events(measured.mean, mean, var) * examples
    distance = torch.where(measured.var <= least, (2 * few).sqrt(), distance)
    few = _events_in(measured) / max(of_other, 1e-300)
    return Discrepancy(shift, ratio, torch.where(var <= least, (2 * few).sqrt(), distance))


def _events(rest: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """Return the share of examples, at least, that differ from `rest` in data of this mean and variance, (C,).

    A channel that is constant in one sample may only be rare: with k events expected, none has the chance exp(-k),
    that of sqrt(2 k) standard errors. The share is from Cauchy and Schwarz: E[x - rest]^2 <= share E[(x - rest)^2].
    """
    square = (mean - rest).square()
    return (square / (square + var)).nan_to_num(1.0)


def _events_in(measured: Measured) -> Tensor:
    """Return the share of examples that make the variance, (C,): 1 over the kurtosis of the examples."""
    square = measured.var.square()
    return (square / (square + measured.variances.spread())).nan_to_num(1.0)


def _careful(noise: Tensor) -> Tensor:
    """Return the relative noise of the variances, (C,), no channel's below the `_CAREFUL` quantile.

    A channel that fires seldom looks calm in a small sample.
    """
    finite = noise[noise.isfinite()]
    typical = float(finite.quantile(_CAREFUL)) if len(finite) else 1.0
    return noise.nan_to_num(typical, typical, typical).clamp_min(typical)


def _share_of_a_batch(layer: AnyBatchNorm) -> float:
    """Return the variance of the running statistics, in that of one batch's."""
    steps = 1 / max(int(layer.num_batches_tracked), 1) if layer.num_batches_tracked is not None else 0.0
    if layer.momentum is None:
        return steps
    momentum = min(max(float(layer.momentum), 0.0), 1.0)
    return max(momentum / (2 - momentum), steps)
