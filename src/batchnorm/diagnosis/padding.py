"""Find padding: positions at the end of an axis where no value changes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_EDGE = 2  # positions


@dataclass(frozen=True)
class Tails:
    """Hold the shares of positions that are constant, over the calls of one layer.

    Arguments:
        tail: the mean share at the end of the axis that has the most.
        head: the same at the start.
        calls: how many calls were seen.
    """

    tail: float = 0.0
    head: float = 0.0
    calls: int = 0

    def merge(self, other: Tails) -> Tails:
        """Return the shares over the calls of both."""
        calls = max(self.calls + other.calls, 1)
        tail = (self.tail * self.calls + other.tail * other.calls) / calls
        head = (self.head * self.calls + other.head * other.calls) / calls
        return Tails(tail, head, self.calls + other.calls)


def tails_of(x: Tensor) -> Tails:
    """Return the constant shares of the axis of x (N, C, ...) whose tail exceeds its head the most.

    Rows (N, C) may be the positions of sequences. There the tail is the share of rows that equal the next one, less
    the share that equal any other: rows of a few categories are alike anywhere, padding stands together.
    """
    if x.dim() == 2:
        anywhere = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        return Tails(max(_alike(x, x.roll(1, 0)) - _alike(x, x[anywhere]), 0.0), 0.0, 1)
    found = [_shares(x, axis) for axis in range(2, x.dim()) if x.shape[axis] > 2]
    return max(found, key=lambda tails: abs(tails.tail - tails.head), default=Tails(calls=1))


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
    return Tails(float(tail.double().mean()) / same.shape[1], float(head.double().mean()) / same.shape[1], 1)


def _longest_run(same: Tensor) -> Tensor:
    """Return the length of the run that starts at one of the first positions, (N,)."""
    starts = range(min(_EDGE + 1, same.shape[1]))
    return torch.stack([same[:, start:].int().cumprod(1).sum(1) for start in starts]).amax(0)
