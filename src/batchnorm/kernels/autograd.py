"""The kernel with its gradient: an autograd Function in eager mode, a custom operator for compilers and exporters.

Double backward differentiates torch's operations instead.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor

from ..errors import BatchNormError
from . import bindings, fallback
from .activation import Activation, Transform, finish
from .bindings import Gradients, Normalized, Running, Whole

# (dz, x, how, saved, want_dx, want_dresidual) to the gradients.
Backward = Callable[[Tensor, Tensor, Transform, Tensor, bool, bool], Gradients]
# The gradients of x, weight, bias and residual, None where none is wanted.
Found = tuple[Tensor | None, ...]


def needs_grad(*tensors: Tensor | None) -> bool:
    """Return True if autograd records operations on any of the tensors."""
    if torch.is_grad_enabled():
        for t in tensors:  # not any(): every step of every layer runs this
            if t is not None and t.requires_grad:
                return True
    return False


def eager(x: Tensor, how: Transform, size: int = 0) -> Normalized:
    """Normalize by the batch with the kernel, or by virtual batches of `size`."""
    if needs_grad(x, how.weight, how.bias, how.residual):
        return Normalized(*_NormalizeByBatch.apply(x, how.weight, how.bias, how.residual, how, None, size))
    return bindings.forward(x, how, None, size)


def eager_and_track(x: Tensor, how: Transform, running: Running) -> tuple[Tensor, bool]:
    """Normalize by the batch with the kernel and move `running` in place. Return z, and True if the batch is finite."""
    if needs_grad(x, how.weight, how.bias, how.residual):
        z, _, finite, _ = _NormalizeByBatch.apply(x, how.weight, how.bias, how.residual, how, running, 0)
        return z, finite
    normalized = bindings.forward(x, how, running)
    return normalized.z, normalized.finite


class _NormalizeByBatch(torch.autograd.Function):
    """The kernel in eager mode. Its overhead is a fifth of that of the operator below."""

    @staticmethod
    def forward(ctx, x, _weight, _bias, _residual, how, running, size):  # autograd looks for tensors among arguments
        normalized = bindings.forward(x, how, running, size)
        _save(ctx, x, how, normalized.saved, size)
        ctx.set_materialize_grads(False)
        if running is not None:
            return normalized.z, None, normalized.finite, None  # each output that is a tensor costs microseconds
        ctx.mark_non_differentiable(normalized.batch, normalized.saved)
        return normalized

    @staticmethod
    def backward(ctx, *gradients):
        backward = partial(_backward, size=ctx.size)
        return *_gradients(ctx, gradients[0], ctx.needs_input_grad[:4], backward), None, None, None


def _save(ctx, x: Tensor, how: Transform, saved: Tensor, size: int = 0) -> None:
    """Save for the backward: the residual only if the slope of the activation needs it."""
    kept = how.residual if how.activation is not None else None
    ctx.save_for_backward(x, how.weight, how.bias, kept, saved)
    ctx.settings = (how.eps, how.activation, how.slope)
    ctx.size = size


def _gradients(ctx, dz: Tensor | None, wanted: tuple[bool, ...], backward: Backward) -> Found:
    """Return the wanted gradients of x, weight, bias and residual.

    `backward` computes them, or torch's operations if they must be differentiable themselves.
    """
    if dz is None:
        return (None,) * 4
    x, weight, bias, residual, saved = ctx.saved_tensors
    eps, activation, slope = ctx.settings
    how = Transform(weight, bias, eps, activation, slope, residual)
    if not torch.is_grad_enabled():
        found = backward(dz, x, how, saved, wanted[0], wanted[3])
        return tuple(t if want else None for t, want in zip(found, wanted, strict=True))
    with torch.enable_grad():
        z = finish(fallback.normalize_by_virtual_batches(x, how, ctx.size), how)
    inputs = [t for t, want in zip((x, weight, bias, residual), wanted, strict=True) if want and t is not None]
    gradients = iter(torch.autograd.grad(z, inputs, dz, create_graph=True))
    dx, dweight, dbias = (next(gradients) if want else None for want in wanted[:3])
    dresidual = (dz if residual is None else next(gradients)) if wanted[3] else None
    return dx, dweight, dbias, dresidual


@torch.library.custom_op("batchnorm::normalize_by_batch", mutates_args=(), device_types="cpu")
def operator(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    slope: float,
    residual: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return z, (mean, unbiased var) and (mean, rstd) for the backward: the kernel for compilers and exporters."""
    dense, how = _coerced(x, Transform(weight, bias, eps, _named(activation), slope, residual))
    z, batch, _, saved = bindings.forward(dense, how)
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
    residual: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight, bias and residual. Without a residual the last is empty."""
    how = Transform(weight, bias, 0.0, _named(activation), slope, residual)  # the backward has eps in rstd
    dx, dweight, dbias, dresidual = _backward(dz, x, how, saved, True, residual is not None)
    assert dx is not None  # it was wanted
    return _like(dx, x), dweight, dbias, x.new_empty(0) if dresidual is None else _like(dresidual, x)


def _like(gradient: Tensor, x: Tensor) -> Tensor:
    if gradient.dtype == x.dtype and gradient.stride() == x.stride():
        return gradient
    return torch.empty_like(x).copy_(gradient)


def _named(activation: str | None) -> Activation | None:
    return cast(Activation | None, activation)  # an operator's schema has no Literal


def _backward(
    dz: Tensor, x: Tensor, how: Transform, saved: Tensor, want_dx: bool, want_dresidual: bool, size: int = 0
) -> Gradients:
    """Run the backward kernel on tensors as hooks of saved tensors may return them."""
    return bindings.backward(*_restored(dz, x, how, saved), want_dx, want_dresidual, size)


def backward_of_part(
    dz: Tensor,
    x: Tensor,
    how: Transform,
    saved: Tensor,
    count: int,
    want_dresidual: bool,
    merge: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> Gradients:
    """Run the backward kernel where the statistics are of other values than those of x: its sums, then dx by all sums.

    Arguments:
        dz: the gradient of the output.
        x: as a hook of saved tensors may return it; so are `how` and `saved`.
        how: as in the forward.
        saved: mean and rstd from the forward.
        count: the values of a channel that the statistics are of.
        want_dresidual: compute the gradient of the residual.
        merge: from the sums of x to those of all values, dbias and dweight, (2, C) in float64.
    """
    restored = _restored(dz, x, how, saved)
    own = bindings.backward(*restored, want_dx=False)
    whole = Whole(merge(torch.stack((own.bias, own.weight)).double()), count)
    found = bindings.backward(*restored, True, want_dresidual, whole=whole)
    return found._replace(weight=own.weight, bias=own.bias)


class _Restored(NamedTuple):
    """The arguments of the backward kernel, in the dtypes and layouts that it wants."""

    dz: Tensor
    x: Tensor
    how: Transform
    saved: Tensor


def _restored(dz: Tensor, x: Tensor, how: Transform, saved: Tensor) -> _Restored:
    """Take saved tensors of any dtype and strides. Raise BatchNormError for other shapes than those of the forward."""
    x, how = _coerced(x, how)
    saved = saved.double().contiguous()
    if saved.shape[-2:] != (2, x.shape[1]) or dz.shape != x.shape:
        raise BatchNormError(
            f"the backward of batch_norm got tensors of shapes {tuple(x.shape)} and {tuple(saved.shape)} from hooks of "
            f"saved tensors; wanted the shapes that the hooks received, {tuple(dz.shape)} and {(2, dz.shape[1])}"
        )
    return _Restored(dz.to(x.dtype), x, how, saved)


def _coerced(x: Tensor, how: Transform) -> tuple[Tensor, Transform]:
    """Coerce the arguments of an operator to a dense layout and a supported dtype.

    An exported program may be cast, or run under autocast, with other dtypes and strides than it was exported with.
    """
    if not bindings.installed():
        raise BatchNormError(
            "batchnorm::normalize_by_batch wants the compiled kernels, with which this program was exported; this "
            "installation has none (bn.kernel_target() is None). Install batchnorm with them, or export the network "
            "again here."
        )
    x = x.float() if x.dtype == torch.float16 else x
    weight, bias = (t if t is None else t.float().contiguous() for t in (how.weight, how.bias))
    residual = how.residual if how.residual is None else how.residual.to(x.dtype)
    shaped = residual is None or residual.shape == x.shape
    if not (shaped and bindings.supports(x, weight, bias)):
        given = (x, weight, bias, residual)
        what = ", ".join("None" if t is None else f"{tuple(t.shape)} {t.dtype}" for t in given)
        raise BatchNormError(
            "batchnorm::normalize_by_batch wants x with two axes or more, in float32, bfloat16 or float16, weight and "
            f"bias with one value per channel, and a residual of x's shape; got {what}. Export the network again in "
            "this dtype."
        )
    dense = x if bindings.is_channels_last(x) is not None else x.contiguous()
    return dense, how._replace(weight=weight, bias=bias, residual=residual)


@operator.register_fake
def _(x: Tensor, *_: object) -> tuple[Tensor, ...]:
    batch, saved = (x.new_empty((2, x.shape[1]), dtype=dtype) for dtype in (torch.float32, torch.float64))
    return torch.empty_like(x), batch, saved


@_normalize_by_batch_backward.register_fake
def _(
    _dz: Tensor,
    x: Tensor,
    _weight: object,
    _bias: object,
    _saved: object,
    _activation: object,
    _slope: object,
    residual: Tensor | None,
) -> tuple[Tensor, ...]:
    dweight, dbias = (x.new_empty(x.shape[1], dtype=torch.float32) for _ in range(2))
    return torch.empty_like(x), dweight, dbias, x.new_empty(0) if residual is None else torch.empty_like(x)


def _set_up_context(ctx, inputs, output):
    x, *how = inputs
    _save(ctx, x, Transform(*how), output[2])


def _operator_gradients(ctx, dz, *_):
    needs = ctx.needs_input_grad
    dx, dweight, dbias, dresidual = _gradients(ctx, dz, (*needs[:3], needs[6]), _operator_backward)
    return dx, dweight, dbias, None, None, None, dresidual


def _operator_backward(
    dz: Tensor, x: Tensor, how: Transform, saved: Tensor, _want_dx: bool, want_dresidual: bool
) -> Gradients:
    settings = (how.activation, how.slope, how.residual)
    dx, dweight, dbias, dresidual = _normalize_by_batch_backward(dz, x, how.weight, how.bias, saved, *settings)
    return Gradients(dx, dweight, dbias, dz if want_dresidual and how.residual is None else dresidual)


operator.register_autograd(_operator_gradients, setup_context=_set_up_context)
