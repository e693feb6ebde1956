"""`Moments`: mean and variance per channel, which merge exactly across batches and processes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from .errors import BatchNormError

_PART = 2**18  # values in a part of a batch, small enough that its doubles fit in the cache


@dataclass(frozen=True, eq=False)
class Moments:
    """Hold the mean and the spread of `count` values for each of C channels.

    m2 = sum((x - mean)^2), so that var = m2 / count (biased) or m2 / (count - 1) (unbiased).

    A value that is not finite makes mean and m2 of its channel NaN or infinite, here and in every merge.

    The variance never comes from E[x^2] - E[x]^2, which cancels. In float32, at mean 300 and std 0.05, that formula
    gives a negative variance (as in fvcore's `update_bn_stats`).

    Arguments:
        count: values per channel, N times all spatial positions.
        mean: (C,), float64, or float32 on devices without float64.
        m2: (C,), as `mean`.

    Example:
        >>> import torch
        >>> import batchnorm as bn
        >>> first = bn.Moments.from_batch(torch.tensor([[0.0], [2.0]]))
        >>> second = bn.Moments.from_batch(torch.tensor([[10.0], [12.0]]))
        >>> both = first.merge(second)
        >>> both.count, both.mean.item(), both.var(unbiased=False).item()
        (4, 6.0, 26.0)
    """

    count: int
    mean: Tensor
    m2: Tensor

    @classmethod
    @torch.no_grad()
    def from_batch(cls, x: Tensor) -> Moments:
        """Compute the moments of one batch, in two passes with sums in float64.

        Arguments:
            x: (N, C) or (N, C, ...), of any floating dtype on any device. N may be 0.

        Raises:
            BatchNormError: `x` has fewer than two axes, or is not floating point.

        Example:
            >>> import torch
            >>> import batchnorm as bn
            >>> moments = bn.Moments.from_batch(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
            >>> moments.count, moments.mean.tolist(), moments.m2.tolist()
            (2, [2.0, 5.0], [2.0, 0.0])
        """
        if x.dim() < 2 or not x.is_floating_point():
            raise BatchNormError(
                f"Moments.from_batch wants a floating point (N, C) or (N, C, ...) tensor; got {x.dtype} of shape "
                f"{tuple(x.shape)}. Give a single activation a batch axis with x[:, None]."
            )
        wide = torch.float32 if x.device.type == "mps" else torch.float64
        if x.numel() == 0:
            return cls(0, x.new_zeros(x.shape[1], dtype=wide), x.new_zeros(x.shape[1], dtype=wide))
        # On a CPU, part by part, so that the doubles stay in the cache. That is seven times as fast for a large x.
        examples = max(1, _PART // x[0].numel()) if x.device.type == "cpu" else len(x)
        parts = (part.reshape(*part.shape[:2], -1).to(wide) for part in x.detach().split(examples))
        return reduce(Moments.merge, map(Moments._of_rows, parts))

    @staticmethod
    def _of_rows(x: Tensor) -> Moments:
        """Compute the moments of x (N, C, S), first within each row, then across the rows."""
        means = x.mean(2)
        mean = means.mean(0)
        inside = (x - means[:, :, None]).square_().sum((0, 2))
        between = (means - mean).square_().sum(0)
        return Moments(x.shape[0] * x.shape[2], mean, inside + x.shape[2] * between)

    def merge(self, other: Moments) -> Moments:
        """Return the moments of both sets together (Chan, Golub & LeVeque 1979). The order matters up to rounding only.

        m2 includes the spread between the two means. An average of variances, as in timm's `distribute_bn`, loses it.

        Raises:
            BatchNormError: the numbers of channels differ.
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
        """Return the variance per channel, (C,).

        Arguments:
            unbiased: divide by `count - 1` (population, Sec. 3.1) instead of `count` (Alg. 1).

        Raises:
            BatchNormError: there are fewer values than the estimate needs.

        Example:
            >>> import torch
            >>> import batchnorm as bn
            >>> moments = bn.Moments.from_batch(torch.tensor([[1.0], [3.0]]))
            >>> moments.var(unbiased=True), moments.var(unbiased=False)
            (tensor([2.], dtype=torch.float64), tensor([1.], dtype=torch.float64))
        """
        degrees = self.count - 1 if unbiased else self.count
        if degrees < 1:
            kind = "an unbiased" if unbiased else "a biased"
            raise BatchNormError(
                f"{kind} variance wants at least {1 + unbiased} values per channel; these Moments hold {self.count}. "
                "Merge more batches first."
            )
        return self.m2 / degrees
