"""The one estimator of mean and variance: a count, a mean and a sum of squared deviations that merge exactly."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from .errors import BatchNormError

_PART = 2**18  # values


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and spread of `count` values for each of C channels.

    m2 = sum((x - mean)^2), so that var = m2 / count (biased) or m2 / (count - 1) (unbiased).
    A value that is not finite makes its channel's mean and m2 NaN or infinite, and so those of every merge with it.
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
        wide = torch.float32 if x.device.type == "mps" else torch.float64
        if x.numel() == 0:
            return cls(0, x.new_zeros(x.shape[1], dtype=wide), x.new_zeros(x.shape[1], dtype=wide))
        # On a CPU a part at a time, so that the doubles stay in its cache: seven times as fast where x does not fit.
        examples = max(1, _PART // x[0].numel()) if x.device.type == "cpu" else len(x)
        parts = (part.reshape(*part.shape[:2], -1).to(wide) for part in x.detach().split(examples))
        return reduce(Moments.merge, map(Moments._of_rows, parts))

    @staticmethod
    def _of_rows(x: Tensor) -> Moments:
        """Moments of x (N, C, S): of every row by itself, then of the rows together."""
        means = x.mean(2)
        mean = means.mean(0)
        inside = (x - means[:, :, None]).square_().sum((0, 2))
        between = (means - mean).square_().sum(0)
        return Moments(x.shape[0] * x.shape[2], mean, inside + x.shape[2] * between)

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets together (Chan, Golub & LeVeque 1979): in any order, up to rounding.

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
