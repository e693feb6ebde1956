"""Find padding: positions at the end of an axis where no value changes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..moments import Moments

_EDGE = 2  # positions


@dataclass(frozen=True)
class Tails:
    """Hold the shares of positions that are constant, over the calls of one layer.

    Arguments:
        shares: the moments, over calls, of three shares: at the end of an axis, at its start, and the first less the
            second. The axis is the one where these differ the most.
    """

    shares: Moments = field(default_factory=lambda: Moments.from_batch(torch.zeros(0, 3)))

    @classmethod
    def of_call(cls, tail: float, head: float) -> Tails:
        """Return the shares of one call."""
        return cls(Moments.from_batch(torch.tensor([[tail, head, tail - head]], dtype=torch.float64)))

    def merge(self, other: Tails) -> Tails:
        """Return the shares over the calls of both."""
        return Tails(self.shares.merge(other.shares))

    @property
    def high(self) -> float:
        """Return the share at the end that has more."""
        return float(self.shares.mean[:2].max())

    @property
    def excess(self) -> float:
        """Return by how much that is more than the share at the other end."""
        return abs(float(self.shares.mean[2]))

    @property
    def error(self) -> float:
        """Return the standard error of `excess`. It is 0 with a single call."""
        count = self.shares.count
        return math.sqrt(float(self.shares.m2[2]) / (count - 1) / count) if count > 1 else 0.0

    @property
    def one_sided(self) -> bool:
        """Return True if most of the constant share has no counterpart at the other end."""
        return self.excess > self.high / 2

    @property
    def framed(self) -> bool:
        """Return True if both ends are constant, and one about as far as the other."""
        return self.high > 0 and not self.one_sided


def tails_of(x: Tensor, first_axis: int = 2) -> Tails:
    """Return the constant shares of the axis of x (N, C, ...) whose tail and head differ the most.

    Rows (N, C) may be the positions of sequences. There the tail is the share of rows that equal the next one, less
    the share that equal any other: rows of a few categories are alike anywhere, padding stands together.
    """
    if x.dim() == 2:
        anywhere = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        return Tails.of_call(_alike(x, x.roll(1, 0)) - _alike(x, x[anywhere]), 0.0)
    found = [_shares(x, axis) for axis in range(first_axis, x.dim()) if x.shape[axis] > 2]
    return max(found, key=lambda tails: tails.excess, default=Tails.of_call(0.0, 0.0))


def tails_of_input(inputs: Tensor | None) -> Tails:
    """Return the constant shares of a network's input (N, C, ...) or (N, ..., C)."""
    if inputs is None or inputs.dim() < 3 or not inputs.is_floating_point() or not inputs.numel():
        return Tails()
    return tails_of(inputs, first_axis=1)


def _alike(x: Tensor, other: Tensor) -> float:
    """Return the share of rows that are equal, up to rounding."""
    return float(((x - other).abs() <= _rounding(x)).all(1).double().mean())


def _rounding(x: Tensor) -> Tensor:
    return 8 * torch.finfo(x.dtype).eps * x.detach().abs().amax()


def _shares(x: Tensor, axis: int) -> Tails:
    """Return the shares of one axis, whose last (first) positions equal each other in all channels, up to rounding.

    The `_EDGE` positions at the very end may differ: a convolution sees its own zeros there.
    """
    moved = x.detach().movedim(axis, 1)
    same = ((moved[:, 1:] - moved[:, :-1]).abs() <= _rounding(x)).flatten(2).all(2)
    tail, head = _longest_run(same.flip(1)), _longest_run(same)
    return Tails.of_call(float(tail.double().mean()) / same.shape[1], float(head.double().mean()) / same.shape[1])


def _longest_run(same: Tensor) -> Tensor:
    """Return the length of the run that starts at one of the first positions, (N,)."""
    starts = range(min(_EDGE + 1, same.shape[1]))
    return torch.stack([same[:, start:].int().cumprod(1).sum(1) for start in starts]).amax(0)
