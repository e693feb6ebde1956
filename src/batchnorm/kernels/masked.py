"""Normalize by the values that a mask counts, on the compiled kernels and without packing.

Where nothing counts, x is filled with one of the values that count. The kernels then read all of x, and the filled
values are taken out of the moments. That is several times as fast as moving the values into rows and back.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..moments import Moments
from . import bindings, dispatch
from .activation import Transform
from .bindings import Gradients, Whole
from .packing import Packed


def normalize(x: Tensor, how: Transform, mask: Tensor, count: int) -> tuple[Tensor, Moments]:
    """Return z, 0 where nothing counts, and the moments of the values that count.

    Arguments:
        x: (N, C, ...), which the kernel must support.
        how: what to apply.
        mask: bool, (N, ...), True where a value counts.
        count: how many values do, 2 or more.
    """
    z, mean, m2 = _Masked.apply(x, *how, mask, count)
    return z, Moments(count, mean, m2)


def zeroed(t: Tensor, mask: Tensor) -> Tensor:
    """Return `t` (N, C, ...) with 0 where nothing counts, and no gradient from or to there."""
    return torch.where(mask.unsqueeze(1), t, 0)


class _Masked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps, activation, slope, residual, mask, count):
        how = Transform(weight, bias, eps, activation, slope, residual)
        near, filled = _filled(x, mask)
        moments = _without(dispatch.moments(filled), near.double(), count)
        saved = torch.stack((moments.mean, (moments.m2 / count + eps).rsqrt()))
        z = bindings.normalize(filled, saved, _zeroed_residual(how, mask)).masked_fill_(~mask.unsqueeze(1), 0)
        ctx.save_for_backward(x, weight, bias, residual, mask, saved)
        ctx.settings, ctx.count = (eps, activation, slope), count
        ctx.mark_non_differentiable(moments.mean, moments.m2)
        ctx.set_materialize_grads(False)
        return z, moments.mean, moments.m2

    @staticmethod
    def backward(ctx, *gradients):
        dz = gradients[0]
        x, weight, bias, residual, mask, saved = ctx.saved_tensors
        eps, activation, slope = ctx.settings
        how = Transform(weight, bias, eps, activation, slope, residual)
        wanted = [ctx.needs_input_grad[i] for i in (0, 1, 2, 6)]
        if dz is None:
            return (None,) * 9
        if torch.is_grad_enabled():
            found = _differentiable(dz, x, how, mask, wanted)
        else:
            found = _gradients(dz, x, how, mask, saved, ctx.count)
        dx, dweight, dbias, dresidual = (t if want else None for t, want in zip(found, wanted, strict=True))
        return dx, dweight, dbias, None, None, None, dresidual, None, None


def _gradients(dz: Tensor, x: Tensor, how: Transform, mask: Tensor, saved: Tensor, count: int) -> Gradients:
    """Return the gradients by two passes of the kernel: the sums, then dx by the number of values that count."""
    how, dz = _zeroed_residual(how, mask), zeroed(dz, mask)
    _, filled = _filled(x, mask)
    own = bindings.backward(dz, filled, how, saved, want_dx=False)
    whole = Whole(torch.stack((own.bias, own.weight)).double(), count)
    found = bindings.backward(dz, filled, how, saved, True, how.residual is not None, whole=whole)
    assert found.x is not None  # it was wanted
    dx = found.x.masked_fill_(~mask.unsqueeze(1), 0)
    return found._replace(x=dx, weight=own.weight, bias=own.bias)


def _differentiable(dz: Tensor, x: Tensor, how: Transform, mask: Tensor, wanted: list[bool]) -> list[Tensor | None]:
    """Return the wanted gradients by torch's operations on the packed values, for double backward."""
    with torch.enable_grad():
        packed = Packed(x, mask)
        z = packed.unpack(dispatch.normalize_with_moments(packed.rows(x), packed.transform(how))[0])
    inputs = (x, how.weight, how.bias, how.residual)
    given = [t for t, want in zip(inputs, wanted, strict=True) if want and t is not None]
    found = iter(torch.autograd.grad(z, given, dz, create_graph=True))
    return [next(found) if want else None for want in wanted]


def _filled(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first value of each channel that counts, (C,), and x with it where nothing counts."""
    first = torch.unravel_index(mask.flatten().to(torch.uint8).argmax(), mask.shape)
    near = x.movedim(1, -1)[first]
    return near, torch.where(mask.unsqueeze(1), x, near.view(-1, *[1] * (x.dim() - 2)))


def _without(moments: Moments, near: Tensor, count: int) -> Moments:
    """Return the moments of `count` values, from those of them and of copies of `near` (Chan's formula, backward)."""
    copies = moments.count - count
    delta = moments.mean - near
    mean = moments.mean + delta * (copies / count)
    return Moments(count, mean, (moments.m2 - delta.square() * (moments.count * copies / count)).clamp_min(0.0))


def _zeroed_residual(how: Transform, mask: Tensor) -> Transform:
    return how if how.residual is None else how._replace(residual=zeroed(how.residual, mask))
