"""The kernel with its gradient: an autograd Function in eager mode, a custom operator for compilers and exporters.

Double backward differentiates torch's operations instead.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import BatchNormError
from . import bindings, fallback
from .activation import activate
from .bindings import Normalized, Running

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]  # of x, weight and bias
# (dz, x, weight, bias, saved, activation, slope, want_dx) to the gradients.
Backward = Callable[[Tensor, Tensor, Tensor | None, Tensor | None, Tensor, str | None, float, bool], Gradients]


def needs_grad(*tensors: Tensor | None) -> bool:
    """Return True if autograd records operations on any of the tensors."""
    if torch.is_grad_enabled():
        for t in tensors:  # not any(): every step of every layer runs this
            if t is not None and t.requires_grad:
                return True
    return False


def eager(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    slope: float,
    running: Running | None = None,
) -> Normalized:
    """Normalize by the batch with the kernel, and move `running` if it is given."""
    if needs_grad(x, weight, bias):
        return Normalized(*_NormalizeByBatch.apply(x, weight, bias, eps, activation, slope, running))
    return bindings.forward(x, weight, bias, eps, activation, slope, running)[0]


class _NormalizeByBatch(torch.autograd.Function):
    """The kernel in eager mode. Its overhead is a fifth of that of the operator below."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps, activation, slope, running):
        normalized, saved = bindings.forward(x, weight, bias, eps, activation, slope, running)
        if normalized.batch is not None:
            ctx.mark_non_differentiable(normalized.batch)
        ctx.save_for_backward(x, weight, bias, saved)
        ctx.settings = (eps, activation, slope)
        ctx.set_materialize_grads(False)
        return normalized

    @staticmethod
    def backward(ctx, *gradients):
        return *_gradients(ctx, gradients[0], _backward), None, None, None, None


def _gradients(ctx, dz: Tensor | None, backward: Backward) -> Gradients:
    """Return the gradients, by `backward`, or by torch's operations if they must be differentiable themselves."""
    wanted = ctx.needs_input_grad[:3]
    if dz is None:
        return None, None, None
    x, weight, bias, saved = ctx.saved_tensors
    eps, activation, slope = ctx.settings
    if not torch.is_grad_enabled():
        dx, dweight, dbias = backward(dz, x, weight, bias, saved, activation, slope, wanted[0])
        return dx if wanted[0] else None, dweight if wanted[1] else None, dbias if wanted[2] else None
    with torch.enable_grad():
        z = activate(fallback.normalize_by_batch(x, weight, bias, eps)[0], activation, slope)
    inputs = [t for t, want in zip((x, weight, bias), wanted, strict=True) if want]
    found = iter(torch.autograd.grad(z, inputs, dz, create_graph=True))
    dx, dweight, dbias = (next(found) if want else None for want in wanted)
    return dx, dweight, dbias


@torch.library.custom_op("batchnorm::normalize_by_batch", mutates_args=(), device_types="cpu")
def operator(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, activation: str | None, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return z, (mean, unbiased var) and (mean, rstd) for the backward: the kernel for compilers and exporters."""
    dense, weight, bias = _coerced(x, weight, bias)
    (z, batch, _), saved = bindings.forward(dense, weight, bias, eps, activation, slope)
    assert batch is not None  # without running statistics there is one
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
    """Return the gradients of x, weight and bias."""
    dx, dweight, dbias = _backward(dz, x, weight, bias, saved, activation, slope, want_dx=True)
    assert dx is not None
    like_x = dx.dtype == x.dtype and dx.stride() == x.stride()
    return (dx if like_x else torch.empty_like(x).copy_(dx)), dweight, dbias


def _backward(
    dz: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    saved: Tensor,
    activation: str | None,
    slope: float,
    want_dx: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Run the backward kernel on saved tensors of any dtype and strides, as hooks of saved tensors may return them."""
    x, weight, bias = _coerced(x, weight, bias)
    saved = saved.double().contiguous()
    if saved.shape != (2, x.shape[1]) or dz.shape != x.shape:
        raise BatchNormError(
            f"the backward of batch_norm got tensors of shapes {tuple(x.shape)} and {tuple(saved.shape)} from hooks of "
            f"saved tensors; wanted the shapes that the hooks received, {tuple(dz.shape)} and {(2, dz.shape[1])}"
        )
    return bindings.backward(dz.to(x.dtype), x, weight, bias, saved, activation, slope, want_dx)


def _coerced(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Coerce the arguments of an operator to a dense layout and a supported dtype.

    An exported program may be cast, or run under autocast, with other dtypes and strides than it was exported with.
    """
    x = x.float() if x.dtype == torch.float16 else x
    weight, bias = (t if t is None else t.float().contiguous() for t in (weight, bias))
    if not bindings.supports(x, weight, bias):
        what = ", ".join("None" if t is None else f"{tuple(t.shape)} {t.dtype}" for t in (x, weight, bias))
        raise BatchNormError(
            "batchnorm::normalize_by_batch wants x with two axes or more, in float32, bfloat16 or float16, and weight "
            f"and bias with one value per channel; got {what}. Export the network again in this dtype."
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
    x, weight, bias, *ctx.settings = inputs
    ctx.save_for_backward(x, weight, bias, output[2])


def _operator_gradients(ctx, dz, *_):
    return *_gradients(ctx, dz, lambda *args: _normalize_by_batch_backward(*args[:-1])), None, None, None


operator.register_autograd(_operator_gradients, setup_context=_set_up_context)
