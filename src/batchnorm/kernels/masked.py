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
from .autograd import backward_of_part
from .packing import Packed


def normalize(x: Tensor, how: Transform, mask: Tensor, count: int) -> tuple[Tensor, Moments]:
    """Return z, 0 where nothing counts, and the moments of the values that count.

    Arguments:
        x: (N, C, ...), which the kernel must support.
        how: what to apply.
        mask: bool, (N, ...), True where a value counts.
        count: how many values do, 2 or more.
    """
    near, filled = _filled(x, mask)
    if how.residual is not None:
        how = how._replace(residual=zeroed(how.residual, mask))
    z, mean, m2 = _Masked.apply(filled, *how, near, mask, count)
    return z, Moments(count, mean, m2)


def zeroed(t: Tensor, mask: Tensor) -> Tensor:
    """Return `t` (N, C, ...) with 0 where nothing counts, and no gradient from or to there."""
    return torch.where(mask.unsqueeze(1), t, 0)


class _Masked(torch.autograd.Function):
    """Normalize a filled x. What its gradients are where nothing counts does not matter: nothing takes them."""

    @staticmethod
    def forward(ctx, filled, weight, bias, eps, activation, slope, residual, near, mask, count):
        how = Transform(weight, bias, eps, activation, slope, residual)
        moments = _without(dispatch.moments(filled), near.double(), count)
        saved = torch.stack((moments.mean, (moments.m2 / count + eps).rsqrt()))
        z = bindings.normalize(filled, saved, how).masked_fill_(~mask.unsqueeze(1), 0)
        ctx.save_for_backward(filled, weight, bias, residual, mask, saved)
        ctx.settings, ctx.count = (eps, activation, slope), count
        ctx.mark_non_differentiable(moments.mean, moments.m2)
        ctx.set_materialize_grads(False)
        return z, moments.mean, moments.m2

    @staticmethod
    def backward(ctx, *gradients):
        dz = gradients[0]
        if dz is None:
            return (None,) * 10
        filled, weight, bias, residual, mask, saved = ctx.saved_tensors
        eps, activation, slope = ctx.settings
        how = Transform(weight, bias, eps, activation, slope, residual)
        wanted = [ctx.needs_input_grad[i] for i in (0, 1, 2, 6)]
        if torch.is_grad_enabled():
            found = _differentiable(dz, filled, how, mask, wanted)
        else:
            found = backward_of_part(zeroed(dz, mask), filled, how, saved, ctx.count, residual is not None)
        dx, dweight, dbias, dresidual = (t if want else None for t, want in zip(found, wanted, strict=True))
        return dx, dweight, dbias, None, None, None, dresidual, None, None, None


def _differentiable(
    dz: Tensor, filled: Tensor, how: Transform, mask: Tensor, wanted: list[bool]
) -> list[Tensor | None]:
    """Return the wanted gradients by torch's operations on the packed values, for double backward."""
    with torch.enable_grad():
        packed = Packed(filled, mask)
        z = packed.unpack(dispatch.normalize_with_moments(packed.rows(filled), packed.transform(how))[0])
    inputs = (filled, how.weight, how.bias, how.residual)
    given = [t for t, want in zip(inputs, wanted, strict=True) if want and t is not None]
    found = iter(torch.autograd.grad(z, given, dz, create_graph=True))
    return [next(found) if want else None for want in wanted]


def _filled(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first value of each channel that counts, (C,), and x with it where nothing counts."""
    first = torch.unravel_index(mask.flatten().to(torch.uint8).argmax(), mask.shape)
    near = x.detach().movedim(1, -1)[first]
    return near, torch.where(mask.unsqueeze(1), x, near.view(-1, *[1] * (x.dim() - 2)))


def _without(moments: Moments, near: Tensor, count: int) -> Moments:
    """Return the moments of `count` values, from those of them and of copies of `near` (Chan's formula, backward)."""
    copies = moments.count - count
    delta = moments.mean - near
    mean = moments.mean + delta * (copies / count)
    return Moments(count, mean, (moments.m2 - delta.square() * (moments.count * copies / count)).clamp_min(0.0))
