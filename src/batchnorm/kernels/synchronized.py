"""Normalize by the statistics of all processes: one exchange of moments forward, one of two sums backward."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..errors import BatchNormError
from ..moments import Moments
from . import bindings, dispatch
from .activation import Transform, finish
from .autograd import backward_of_part
from .checks import check_eps
from .meeting import Meeting


def normalize(x: Tensor, how: Transform, meeting: Meeting) -> tuple[Tensor, Moments]:
    """Normalize `x` by the values of all processes. Return z and the moments of all processes.

    The mean and the variance are merged in float64 by Chan's formula, with the count of each process. A process may
    have no examples.

    Raises:
        BatchNormError: all processes together have one value per channel.
        PeerError: another process is in another layer, or gone.
    """
    check_eps(how.eps)
    how = dispatch.with_wide_affine(x, how)
    on_kernel = dispatch.kernel_supports(x, how)
    inside = how if on_kernel else how._replace(activation=None, residual=None)
    z, count, mean, m2 = _Synchronized.apply(x, *inside, meeting, on_kernel)
    return z if on_kernel else finish(z, how), Moments(count, mean, m2)


class _Synchronized(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps, activation, slope, residual, meeting, on_kernel):
        how = Transform(weight, bias, eps, activation, slope, residual)
        moments = meeting.merge(dispatch.moments(x))
        if moments.count == 1:
            raise BatchNormError(
                "Expected more than 1 value per channel when training: all processes together have one. "
                "Use a larger batch."
            )
        saved = torch.stack((moments.mean, (moments.m2 / max(moments.count, 1) + eps).rsqrt()))
        z = bindings.normalize(x, saved, how) if on_kernel else _Affine.of(x, how, saved).apply(x)
        ctx.save_for_backward(x, weight, bias, residual, saved)
        ctx.settings = (eps, activation, slope)
        ctx.meeting, ctx.on_kernel, ctx.count = meeting, on_kernel, moments.count
        ctx.mark_non_differentiable(moments.mean, moments.m2)
        return z, moments.count, moments.mean, moments.m2

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):  # pyright: ignore[reportIncompatibleMethodOverride]
        dz = gradients[0]
        x, weight, bias, residual, saved = ctx.saved_tensors
        eps, activation, slope = ctx.settings
        how = Transform(weight, bias, eps, activation, slope, residual)
        wanted = [ctx.needs_input_grad[i] for i in (0, 1, 2, 6)]
        step = _by_kernel if ctx.on_kernel else _by_torch
        found = step(ctx, dz, x, how, saved, wanted[3])
        dx, dweight, dbias, dresidual = (t if want else None for t, want in zip(found, wanted, strict=True))
        return dx, dweight, dbias, None, None, None, dresidual, None, None


def _by_kernel(ctx, dz: Tensor, x: Tensor, how: Transform, saved: Tensor, want_dresidual: bool) -> bindings.Gradients:
    return backward_of_part(dz, x, how, saved, ctx.count, want_dresidual, ctx.meeting.sum)


def _by_torch(ctx, dz: Tensor, x: Tensor, how: Transform, saved: Tensor, want_dresidual: bool) -> bindings.Gradients:
    """Return the gradients of BN alone, by the formula of the kernels: dx = a * dz + c1 * (x - near) + c0."""
    del want_dresidual  # the residual is added outside
    affine = _Affine.of(x, how, saved)
    rstd = saved[1]
    axes = (0, *range(2, x.dim()))
    wide = dz.to(saved.dtype)
    dbias = wide.sum(axes)
    dweight = rstd * ((wide * affine.deviation(x)).sum(axes) - affine.rest * dbias)
    all_dbias, all_dweight = ctx.meeting.sum(torch.stack((dbias, dweight)))
    c1 = -affine.a * rstd * all_dweight / ctx.count
    c0 = -affine.a * all_dbias / ctx.count - c1 * affine.rest
    a, c1, c0 = (_per_channel(t, x).to(affine.near.dtype) for t in (affine.a, c1, c0))
    dx = (a * dz + c1 * affine.deviation(x) + c0).to(x.dtype)
    dtypes = [x.dtype if t is None else t.dtype for t in (how.weight, how.bias)]
    return bindings.Gradients(dx, dweight.to(dtypes[0]), dbias.to(dtypes[1]), None)


class _Affine(NamedTuple):
    """y = a * (x - near) + b per channel, where b absorbs the rounding error of `near`, the mean in x's precision."""

    near: Tensor
    rest: Tensor
    a: Tensor
    b: Tensor

    @classmethod
    def of(cls, x: Tensor, how: Transform, saved: Tensor) -> _Affine:
        mean, rstd = saved
        near = mean.to(torch.promote_types(x.dtype, torch.float32))
        rest = mean - near.to(mean.dtype)
        a = rstd if how.weight is None else rstd * how.weight.to(rstd.dtype)
        b = -rest * a if how.bias is None else how.bias.to(rstd.dtype) - rest * a
        return cls(near, rest, a, b)

    def deviation(self, x: Tensor) -> Tensor:
        return x - _per_channel(self.near, x)

    def apply(self, x: Tensor) -> Tensor:
        a, b = (_per_channel(t, x).to(self.near.dtype) for t in (self.a, self.b))
        return (self.deviation(x) * a + b).to(x.dtype)


def _per_channel(t: Tensor, x: Tensor) -> Tensor:
    return t.view(-1, *[1] * (x.dim() - 2))
