"""The kernel with its gradient: a Function of autograd in eager mode, an operator where a tracer or compiler looks on.

Double backward differentiates torch's operations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import BatchNormError
from . import bindings, fallback


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd follows any of these."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def eager(x: Tensor, weight: Tensor | None, bias: Tensor | None, *how: Any) -> tuple[Tensor, Any]:
    """z by the kernel; and the batch's statistics or, where running ones are given, whether they moved."""
    if needs_grad(x, weight, bias):
        return _NormalizeByBatch.apply(x, weight, bias, *how)
    if len(how) == 3:
        return bindings.forward(x, weight, bias, *how)[:2]
    z, _, finite = bindings.forward_and_track(x, weight, bias, *how)
    return z, finite


class _NormalizeByBatch(torch.autograd.Function):
    """The kernel in eager mode: a fifth of the overhead of the operator below."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps, activation, slope, running=None):
        if running is None:
            z, found, saved = bindings.forward(x, weight, bias, eps, activation, slope)
            ctx.mark_non_differentiable(found)
        else:
            z, saved, found = bindings.forward_and_track(x, weight, bias, eps, activation, slope, running)
        ctx.save_for_backward(x, weight, bias, saved)
        ctx.fused = (eps, activation, slope)
        ctx.set_materialize_grads(False)
        return z, found

    @staticmethod
    def backward(ctx, *gradients):
        return *_gradients(ctx, gradients[0], _backward), None, None, None, None


def _gradients(ctx, dz: Tensor | None, backward: Callable) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight and bias: by `backward`, or by torch where they must be differentiable themselves."""
    wanted = ctx.needs_input_grad[:3]
    if dz is None:
        return None, None, None
    x, weight, bias, saved = ctx.saved_tensors
    eps, activation, slope = ctx.fused
    if not torch.is_grad_enabled():
        gradients = backward(dz, x, weight, bias, saved, activation, slope, wanted[0])
        return tuple(g if want else None for g, want in zip(gradients, wanted, strict=True))
    with torch.enable_grad():
        z = fallback.activate(fallback.normalize_by_batch(x, weight, bias, eps)[0], activation, slope)
    inputs = [t for t, want in zip((x, weight, bias), wanted, strict=True) if want]
    found = iter(torch.autograd.grad(z, inputs, dz, create_graph=True))
    return tuple(next(found) if want else None for want in wanted)


@torch.library.custom_op("batchnorm::normalize_by_batch", mutates_args=(), device_types="cpu")
def operator(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, activation: str | None, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    """z, (mean, unbiased var), and what the backward wants: the kernel as `torch.compile` and `torch.export` see it."""
    dense, weight, bias = _as_kernel_takes(x, weight, bias)
    z, batch, saved = bindings.forward(dense, weight, bias, eps, activation, slope)
    return (z if dense is x else torch.empty_like(x).copy_(z)), batch, saved


@torch.library.custom_op("batchnorm::normalize_by_batch_backward", mutates_args=(), device_types="cpu")
def _normalize_by_batch_backward(
    dz: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    saved: Tensor,
    activation: str | None,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias."""
    dx, dweight, dbias = _backward(dz, x, weight, bias, saved, activation, slope)
    assert dx is not None
    like_x = dx.dtype == x.dtype and dx.stride() == x.stride()
    return (dx if like_x else torch.empty_like(x).copy_(dx)), dweight, dbias


def _backward(
    dz: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, saved: Tensor, *how: Any
) -> tuple[Tensor | None, Tensor, Tensor]:
    """The kernel, whatever dtypes and strides hooks of saved tensors gave back: it reads their memory as it is."""
    x, weight, bias = _as_kernel_takes(x, weight, bias)
    saved = saved.double().contiguous()
    if saved.shape != (2, x.shape[1]) or dz.shape != x.shape:
        raise BatchNormError(
            f"the backward of batch_norm got tensors of shapes {tuple(x.shape)} and {tuple(saved.shape)} from hooks of "
            f"saved tensors; wanted those that the hooks were given, {tuple(dz.shape)} and {(2, dz.shape[1])}"
        )
    return bindings.backward(dz.to(x.dtype), x, weight, bias, saved, *how)


def _as_kernel_takes(x: Tensor, *channelwise: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What an operator is called with, dense and of a dtype that the kernel has.

    A program may be cast, or run under autocast, after it was exported with other dtypes and strides.
    """
    x = x.float() if x.dtype == torch.float16 else x
    weight, bias = (t if t is None else t.float().contiguous() for t in channelwise)
    if not bindings.fits(x, weight, bias):
        what = ", ".join("None" if t is None else f"{tuple(t.shape)} {t.dtype}" for t in (x, weight, bias))
        raise BatchNormError(
            "batchnorm::normalize_by_batch wants x of two axes or more, float32, bfloat16 or float16, and weight and "
            f"bias of its channels; got {what}. Export the network again in this dtype."
        )
    return (x if bindings.is_channels_last(x) is not None else x.contiguous()), weight, bias


@operator.register_fake
def _(x: Tensor, *_: object) -> tuple[Tensor, ...]:
    batch, saved = (x.new_empty((2, x.shape[1]), dtype=dtype) for dtype in (torch.float32, torch.float64))
    return torch.empty_like(x), batch, saved


@_normalize_by_batch_backward.register_fake
def _(_dz: Tensor, x: Tensor, *_: object) -> tuple[Tensor, ...]:
    dweight, dbias = (x.new_empty(x.shape[1], dtype=torch.float32) for _ in range(2))
    return torch.empty_like(x), dweight, dbias


def _set_up_context(ctx, inputs, output):
    x, weight, bias, *ctx.fused = inputs
    ctx.save_for_backward(x, weight, bias, output[2])


def _operator_gradients(ctx, dz, *_):
    return *_gradients(ctx, dz, lambda *args: _normalize_by_batch_backward(*args[:-1])), None, None, None


operator.register_autograd(_operator_gradients, setup_context=_set_up_context)
