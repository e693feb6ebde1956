"""The one estimator of mean and variance: a count, a mean and a sum of squared deviations that merge exactly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import BatchNormError


@dataclass(frozen=True)
class Moments:
    """Mean and spread of `count` values for each of C channels.

    m2 = sum((x - mean)^2), so that var = m2 / count (biased) or m2 / (count - 1) (unbiased).
    E[x^2] - E[x]^2 is never formed: fvcore's `update_bn_stats` does, and at mean 300 with std 0.05 in float32 its
    variance is negative.

    Arguments:
        count: values per channel, N times all spatial positions.
        mean: (C,), float64 (float32 on devices without float64).
        m2: (C,), as `mean`.
    """

    count: int
    mean: Tensor
    m2: Tensor

    @classmethod
    @torch.no_grad()
    def from_batch(cls, x: Tensor) -> Moments:
        """Moments of one batch, in two passes with sums in double.

        Arguments:
            x: (N, C) or (N, C, ...), any floating dtype, any device; N may be 0.

        Raises:
            BatchNormError: `x` has fewer than two dimensions or is not floating point.
        """
        if x.dim() < 2 or not x.is_floating_point():
            raise BatchNormError(
                f"Moments.from_batch wants a floating point (N, C) or (N, C, ...) tensor; got {x.dtype} of shape "
                f"{tuple(x.shape)}. Give a single activation a batch axis with x[:, None]."
            )
        wide = x.detach().to(torch.float32 if x.device.type == "mps" else torch.float64)
        count = x.numel() // x.shape[1] if x.shape[1] else 0
        if count == 0:
            return cls(0, wide.new_zeros(x.shape[1]), wide.new_zeros(x.shape[1]))
        var, mean = torch.var_mean(wide, [d for d in range(x.dim()) if d != 1], correction=0)
        return cls(count, mean, var * count)

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets together (Chan, Golub & LeVeque 1979): exact, associative, any order.

        The spread between the two means enters m2; averaging variances, as timm's `distribute_bn` does, loses it.

        Raises:
            BatchNormError: the two describe different numbers of channels.
        """
        if self.mean.shape != other.mean.shape:
            raise BatchNormError(
                f"cannot merge Moments of {len(self.mean)} and {len(other.mean)} channels; "
                "merge only batches of the same activation"
            )
        count = self.count + other.count
        if count == 0:
            return self
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        m2 = self.m2 + other.m2 + delta.square() * (self.count * other.count / count)
        return Moments(count, mean, m2)

    def var(self, *, unbiased: bool) -> Tensor:
        """Variance per channel, (C,): over `count - 1` if unbiased (population, Sec. 3.1), else over `count` (Alg. 1).

        Raises:
            BatchNormError: fewer values than the estimate needs.
        """
        degrees = self.count - 1 if unbiased else self.count
        if degrees < 1:
            kind = "unbiased" if unbiased else "biased"
            raise BatchNormError(
                f"a {kind} variance wants at least {1 + unbiased} values per channel; these Moments hold {self.count}. "
                "Merge more batches first."
            )
        return self.m2 / degrees
