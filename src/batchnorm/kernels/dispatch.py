"""The choice between the compiled kernels and torch's operations."""

from __future__ import annotations

from functools import reduce
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

from ..moments import Moments
from ..torch_private import forward_ad_level, is_tracing, len_torch_dispatch_stack, peek_interpreter_stack
from . import autograd, bindings, device, fallback
from .activation import Transform, finish
from .bindings import Running
from .checks import check_batch, check_residual, check_running

# Inference tensors with fewer values run faster in torch, because calling the kernel has more overhead. Training has no
# such limit: the kernel is faster than torch's operations at any size (benchmarks/bench_threshold.py).
FEWEST_IN_INFERENCE = 32768

_ORDINARY = {Tensor, Parameter, type(None)}
MaybeTensor = TypeVar("MaybeTensor", Tensor, Tensor | None)


def normalize_by_batch(x: Tensor, how: Transform) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize `x` by its own statistics. Return (z, mean, unbiased var).

    mean and var are (C,), float32 at least, without gradient. They are NaN for an empty batch, as in torch.

    Raises:
        BatchNormError: one value per channel, an eps that is not positive, or a residual of another shape.
    """
    check_batch(x, how.eps)
    check_residual(x, how.residual)
    how = with_wide_affine(x, how)
    weight, bias = how.weight, how.bias
    if _kernel_supports(x, 1, how.residual, weight, bias):
        z, batch, _, _ = autograd.eager(x, how)
        assert batch is not None  # without running statistics there is one
        return z, batch[0], batch[1]
    if _operator_supports(x, how.residual, weight, bias):
        z, batch, _ = autograd.operator(x, *how)
        return z, batch[0], batch[1]
    y, mean, var = fallback.normalize_by_batch(x, how)
    return finish(y, how), mean, var


def normalize_with_moments(x: Tensor, how: Transform, size: int = 0) -> tuple[Tensor, Moments]:
    """Normalize `x` by its own statistics. Return z and the moments of all of x, without gradient.

    Arguments:
        x: (N, C, ...).
        how: what to apply.
        size: examples in a virtual batch, each with statistics of its own. A short last one is part of the one
            before it. 0 means that all examples are one.

    Raises:
        BatchNormError: as `normalize_by_batch`.
    """
    check_batch(x[:size] if size else x, how.eps)
    check_residual(x, how.residual)
    how = with_wide_affine(x, how)
    if x.numel() and kernel_supports(x, how):
        z, _, _, saved = autograd.eager(x, how, size)
        parts = zip(saved.view(-1, 2, x.size(1)), fallback.virtual_batches(len(x), size), strict=True)
        values = x.numel() // (len(x) * x.size(1))
        return z, reduce(Moments.merge, (_moments(part, how.eps, n * values) for part, n in parts))
    return finish(fallback.normalize_by_virtual_batches(x, how, size), how), Moments.from_batch(x)


def moments(x: Tensor) -> Moments:
    """Return the moments of `x`, by the kernel where it supports x."""
    if not (x.numel() and kernel_supports(x.detach(), Transform(None, None, 0.0))):
        return Moments.from_batch(x)
    return _moments(bindings.statistics(x), 0.0, x.numel() // x.size(1))


def _moments(saved: Tensor, eps: float, count: int) -> Moments:
    mean, rstd = saved.unbind()
    return Moments(count, mean, count * (rstd**-2 - eps).clamp_min(0.0))


def normalize_and_track(x: Tensor, how: Transform, running: Running) -> tuple[Tensor, bool | Tensor | None]:
    """Normalize `x` by its own statistics and move `running` in place. Return z and what `update_running` returns.

    Raises:
        BatchNormError: as `check_running` and `normalize_by_batch`.
        RuntimeError: as `check_running`.
    """
    # One check of everything, then one call. A kernel that streams a large tensor drives the interpreter out of the
    # caches. Each further call from Python then takes several times as long.
    per_channel = (how.weight, how.bias, running.mean, running.var)
    if x.is_cuda:
        if _is_eager(x, how.residual, *per_channel) and device.supports(x, running):
            check_batch(x, how.eps)
            check_residual(x, how.residual)
            return finish(device.normalize_and_track(x, with_wide_affine(x, how), running), how), None
    elif _kernel_supports(x, 1, how.residual, *per_channel) and _kernel_tracks(running):
        check_batch(x, how.eps)
        return autograd.eager_and_track(x, how, running)
    check_running(x, running.mean, running.var)
    z, mean, var = normalize_by_batch(x, how)
    return z, update_running(running, mean, var)


def normalize(x: Tensor, mean: Tensor, var: Tensor, how: Transform) -> Tensor:
    """Normalize `x` by constant statistics (inference, Alg. 2, line 11).

    Raises:
        BatchNormError, RuntimeError: as `check_running`; BatchNormError also for a residual of another shape.
    """
    mean, var = _widened(x, mean, var)
    how = with_wide_affine(x, how)
    weight, bias = how.weight, how.bias
    constant = not (mean.requires_grad or var.requires_grad or autograd.needs_grad(x, weight, bias, how.residual))
    # Compilers fuse torch's own operation with its neighbors, and exporters know it: they do not get the kernel.
    if constant and _kernel_supports(x, FEWEST_IN_INFERENCE, how.residual, weight, bias, mean, var):
        return bindings.inference(x, mean, var, how)
    check_running(x, mean, var)
    check_residual(x, how.residual)
    return finish(F.batch_norm(x, mean, var, weight, bias, training=False, eps=how.eps), how)


def update_running(running: Running, mean: Tensor, var: Tensor) -> bool | Tensor | None:
    """Move the running statistics in place: running += momentum * (batch - running).

    A batch that is not finite changes nothing. Any other batch increases `running.batches_seen` by 1.

    Returns:
        True if the batch is finite. In eager mode on the CPU it is a bool. Elsewhere it is a boolean scalar tensor, or
        None if only the device knows, so that the host need not wait for it.
    """
    if _is_eager(running.mean, running.var, mean, var) and not mean.is_cpu and isinstance(running.momentum, float):
        device.move_running(running.mean, running.var, running.batches_seen, mean, var, running.momentum)
        return None
    finite = _move(running, mean, var)
    if running.batches_seen is not None:
        running.batches_seen.add_(finite)
    return finite


def _move(running: Running, mean: Tensor, var: Tensor) -> bool | Tensor:
    # Detached, not under no_grad: torch.export cannot load a program with a no_grad region that returns nothing.
    statistics = (running.mean, running.var, mean.detach(), var.detach())
    eager = _is_eager(*statistics)
    if eager and bindings.installed() and bindings.are_per_channel(mean.numel(), *statistics):
        return bindings.update_running(*statistics, float(running.momentum))
    if eager and mean.device.type == running.mean.device.type == "cpu":
        return fallback.update_on_host(*statistics, running.momentum)
    return fallback.update_on_device(*statistics, running.momentum)


def kernel_supports(x: Tensor, how: Transform) -> bool:
    """Return True if the kernel can train on these. Otherwise torch's operations run."""
    return _kernel_supports(x, 1, how.residual, how.weight, how.bias)


def _kernel_supports(x: Tensor, fewest: int, residual: Tensor | None, *per_channel: Tensor | None) -> bool:
    """Return True if the compiled kernel supports these tensors. Otherwise torch's operations run.

    The kernel supports eager mode on the CPU, float32 and bfloat16, and dense (N, C, S) or (N, S, C) layouts with at
    least `fewest` values. A residual must be like x. Each tensor in `per_channel` must be float32 and contiguous.
    """
    return (
        bindings.installed()
        and _is_eager(x, residual, *per_channel)
        and _is_like(residual, x)
        and x.numel() >= fewest
        and bindings.supports(x, *per_channel)
        and bindings.is_channels_last(x) is not None
        and not x.is_neg()  # a lazy negation, as in the imaginary part of a conjugate, is not in memory
    )


def _kernel_tracks(running: Running) -> bool:
    """Return True if the kernel can move these statistics, provided that `_kernel_supports` accepts their tensors."""
    mean, var, momentum, count = running
    return (
        not isinstance(momentum, Tensor)
        and not (mean.requires_grad or var.requires_grad)
        and (count is None or (count.dtype == torch.int64 and count.is_cpu))
    )


def _operator_supports(x: Tensor, residual: Tensor | None, *per_channel: Tensor | None) -> bool:
    """Return True if a tracer must record the kernel as an operator. Strides may be symbolic, so they do not count."""
    traced = torch.compiler.is_compiling() or len_torch_dispatch_stack() > 0
    return traced and bindings.installed() and _is_like(residual, x) and bindings.supports(x, *per_channel)


def _is_like(residual: Tensor | None, x: Tensor) -> bool:
    """Return True if the kernel can add the residual: it has the shape and dtype of `x`, on the CPU too."""
    if residual is None:
        return True
    return residual.shape == x.shape and residual.dtype == x.dtype and residual.is_cpu and residual.layout == x.layout


def _is_eager(*tensors: Tensor | None) -> bool:
    """Return True if these are ordinary tensors, with no tracer, transform or mode active."""
    if torch.compiler.is_compiling() or len_torch_dispatch_stack() or is_tracing():
        return False
    if peek_interpreter_stack() is not None or forward_ad_level() >= 0:
        return False
    return _ORDINARY.issuperset(map(type, tensors))


def _widened(x: Tensor, *per_channel: MaybeTensor) -> tuple[MaybeTensor, ...]:
    # With a half-precision x, torch accepts all of mean, var, gamma and beta in float32, or none of them.
    if x.dtype not in (torch.float16, torch.bfloat16):
        return per_channel
    return tuple(c if c is None or c.dtype == torch.float32 else c.float() for c in per_channel)


def with_wide_affine(x: Tensor, how: Transform) -> Transform:
    """Return the transform with gamma and beta in float32 if `x` has half precision, as torch and the kernel want."""
    weight, bias = _widened(x, how.weight, how.bias)
    return how if weight is how.weight and bias is how.bias else how._replace(weight=weight, bias=bias)
