"""Masks: check them, pack the values that count into rows, and put the results back."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import BatchNormError
from .activation import Transform


def as_mask(x: Tensor, mask: Tensor | None, lengths: Tensor | None) -> Tensor:
    """Return the mask of the values of `x` that count, bool, shaped like `x` without its channel axis.

    Arguments:
        x: (N, C, ...).
        mask: bool, (N,) or broadcastable to the shape of `x` without axis 1. True where a value counts.
        lengths: integers, (N,), for x of (N, C, L): the first values of each sequence count. Give it or `mask`.

    Raises:
        BatchNormError: both or neither are given, or one has a wrong dtype, shape or value.
    """
    if (mask is None) == (lengths is None):
        raise BatchNormError(
            "a masked batch normalization wants mask or lengths; got " + ("both" if mask is not None else "neither")
        )
    shape = (x.shape[0], *x.shape[2:])
    if mask is None:
        assert lengths is not None
        if x.dim() != 3:
            raise BatchNormError(f"lengths are for an input of (N, C, L); got {tuple(x.shape)}. Give mask instead.")
        return from_lengths(lengths, len(x), x.shape[2], x.device)
    check_mask(mask)
    axes = len(shape)
    if mask.dim() == 1:
        mask = mask.reshape(-1, *[1] * (axes - 1))
    fits = mask.dim() == axes and all(m in (1, n) for m, n in zip(mask.shape, shape, strict=True))
    if not fits:
        raise BatchNormError(
            f"mask of shape {tuple(mask.shape)} does not fit an input of shape {tuple(x.shape)}; wanted ({len(x)},) or "
            f"{shape}, the input's shape without the channel axis"
        )
    return mask.to(x.device).expand(shape)


def check_mask(mask: Tensor) -> None:
    """Raise BatchNormError unless the mask is a bool tensor with the axis of the examples."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        came = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise BatchNormError(f"mask must be a bool tensor, True where a value counts; got {came}. Use mask.bool().")
    if mask.dim() == 0:
        raise BatchNormError("mask must have an axis for the examples, (N,) or (N, ...); got a scalar")


def from_lengths(lengths: Tensor, n: int, length: int, device: torch.device) -> Tensor:
    """Return the mask (n, length) of which the first values of each row count."""
    lengths = torch.as_tensor(lengths, device=device)
    if lengths.shape != (n,) or lengths.is_floating_point() or lengths.dtype == torch.bool:
        came = f"{lengths.dtype} of shape {tuple(lengths.shape)}"
        raise BatchNormError(f"lengths must be {n} integers, one per sequence; got {came}")
    if n and (int(lengths.min()) < 0 or int(lengths.max()) > length):
        raise BatchNormError(
            f"lengths must be from 0 to {length}, the length of the padded input; got {lengths.tolist()}. "
            "If the last axis of the input holds features, give mask."
        )
    return torch.arange(length, device=device) < lengths[:, None]


class Packed:
    """Where the values of `x` that count are, and how to move them into rows and back.

    A value that does not count is never read, so that a NaN in the padding matters as little as its gradient.
    """

    def __init__(self, x: Tensor, mask: Tensor) -> None:
        self._places = mask.reshape(-1).nonzero().squeeze(1)
        self._x = x

    def rows(self, x: Tensor) -> Tensor:
        """Return the values of x (N, C, ...) that count, (M, C)."""
        return x.movedim(1, -1).reshape(-1, x.shape[1]).index_select(0, self._places)

    def transform(self, how: Transform) -> Transform:
        """Return the transform of the rows."""
        return how if how.residual is None else how._replace(residual=self.rows(how.residual))

    def unpack(self, rows: Tensor) -> Tensor:
        """Return a tensor shaped like `x` and in its layout, with the rows where values count and 0 elsewhere."""
        x = self._x
        last = x.movedim(1, -1)
        flat = rows.new_zeros(last.shape.numel() // x.shape[1] if x.shape[1] else 0, x.shape[1])
        z = flat.index_copy(0, self._places, rows).reshape(last.shape).movedim(-1, 1)
        return z.contiguous() if x.is_contiguous() else z
