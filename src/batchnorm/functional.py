"""Algorithm 1 and its gradient: validation, then the one place that chooses who computes it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, TypeVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.nn import Parameter

from . import kernels
from .errors import BatchNormError

# Values below which torch's operation takes less time than the way to the kernel. In training the kernel is faster than
# torch's operations under the same layer at any size: benchmarks/bench_threshold.py.
FEWEST_IN_INFERENCE = 32768

Activation = Literal["relu", "leaky_relu", "sigmoid"]
_ORDINARY = {Tensor, Parameter, type(None)}
MaybeTensor = TypeVar("MaybeTensor", Tensor, Tensor | None)


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: Activation | None = None,
    negative_slope: float = 0.01,
) -> Tensor:
    """Batch-normalize `x` per channel, then apply `activation`: z = g(BN(x)) (Alg. 1, Sec. 3.2).

    y = weight * (x - mean) / sqrt(var + eps) + bias, with one mean and variance per channel (axis 1).

    Training: mean and the biased variance are the batch's own, the gradient flows through both, and the running
    statistics, if given, move in place by `momentum` towards the batch's mean and unbiased variance. A batch whose
    mean or variance is not finite leaves them as they were (in torch one inf spoils them for ever).
    Inference: mean and variance are the running statistics.

    Arguments:
        x: (N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W).
        running_mean, running_var: (C,); both or neither; may be None in training. Keep them float32 or wider.
        weight, bias: gamma and beta, (C,), or None for 1 and 0.
        training: normalise by the batch (True) or by the running statistics (False).
        momentum: weight of the *new* batch in the running statistics, torch's sense.
        eps: added to the variance, inside the square root.
        activation: None, "relu", "leaky_relu" or "sigmoid".
        negative_slope: of the leaky ReLU.

    Returns:
        z, of the shape, dtype and memory format of `x`.

    Raises:
        BatchNormError: an unknown activation, momentum None, running statistics missing, or, in training, one value
            per channel or an eps that is not positive.
        ValueError, RuntimeError: torch's own, for a shape that does not fit.
    """
    check_activation(activation)
    if training:
        fused = (eps, activation, negative_slope)
        if running_mean is None or running_var is None:
            check_running(x, running_mean, running_var)  # which wants both, or neither
            return normalize_by_batch(x, weight, bias, *fused)[0]
        if momentum is None:
            raise BatchNormError("batch_norm wants a number for momentum; got None, which only layers can average by")
        return normalize_and_track(x, running_mean, running_var, momentum, weight, bias, *fused)[0]
    check_running(x, running_mean, running_var)
    if running_mean is None or running_var is None:
        raise BatchNormError(
            "batch_norm with training=False wants running_mean and running_var; got None. "
            "Give both, or normalise by the batch with training=True."
        )
    return normalize(x, running_mean, running_var, weight, bias, eps, activation, negative_slope)


def normalize_by_batch(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: Activation | None = None,
    negative_slope: float = 0.01,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise `x` by its own statistics and return these too: (z, mean, unbiased var).

    `mean` and `var` are (C,), float32 at least, and carry no gradient. An empty batch has NaN for both, as in torch.

    Raises:
        BatchNormError: one value per channel, whose variance says nothing; an eps that is not positive.
    """
    _check_batch(x, eps)
    weight, bias = _widened(x, weight), _widened(x, bias)
    fused = activation if activation in kernels.ACTIVATIONS else None
    if _kernel_takes(x, 1, weight, bias):
        z, batch = _normalize_by_kernel(x, weight, bias, eps, fused, negative_slope)
        mean, var = batch.unbind()
    elif _kernel_operator_takes(x, weight, bias):
        z, batch, _ = _normalize_by_batch(x, weight, bias, eps, fused, negative_slope)
        mean, var = batch.unbind()
    else:
        z, mean, var = _normalize_by_batch_in_torch(x, weight, bias, eps)
        fused = None
    return (z if fused == activation else _activate(z, activation, negative_slope)), mean, var


def normalize_and_track(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float | Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: Activation | None = None,
    negative_slope: float = 0.01,
    count: Tensor | None = None,
) -> tuple[Tensor, bool | Tensor]:
    """Normalise `x` by its own statistics and move the running ones, as `update_running`: z, and what that returns.

    Raises: what `check_running` and `normalize_by_batch` raise.
    """
    fused = activation if activation in kernels.ACTIVATIONS else None
    # What the kernel takes needs no other check but that of the batch: between its passes over memory every call from
    # Python waits for the caches, and costs several times what it does alone.
    statistics = (weight, bias, running_mean, running_var)
    if _kernel_takes(x, 1, *statistics) and _kernel_tracks(running_mean, running_var, momentum, count):
        _check_batch(x, eps)
        running = (running_mean, running_var, momentum, count)
        z, finite = _normalize_by_kernel(x, weight, bias, eps, fused, negative_slope, running)
        return (z if fused == activation else _activate(z, activation, negative_slope)), finite
    check_running(x, running_mean, running_var)
    z, mean, var = normalize_by_batch(x, weight, bias, eps, activation, negative_slope)
    return z, update_running(running_mean, running_var, mean, var, momentum, count)


def normalize(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: Activation | None = None,
    negative_slope: float = 0.01,
) -> Tensor:
    """Normalise `x` by statistics that are constants: the inference half of Alg. 2, line 11."""
    mean, var, weight, bias = _widened(x, mean), _widened(x, var), _widened(x, weight), _widened(x, bias)
    # Compilers fuse this one with its neighbours, and exporters know it: the kernel is for eager mode.
    if _kernel_takes(x, FEWEST_IN_INFERENCE, weight, bias, mean, var) and not _needs_grad(x, weight, bias):
        fused = activation if activation in kernels.ACTIVATIONS else None
        z = kernels.inference(x, mean, var, weight, bias, eps, fused, negative_slope)
        return z if fused == activation else _activate(z, activation, negative_slope)
    y = F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)
    return _activate(y, activation, negative_slope)


@torch.no_grad()
def update_running(
    running_mean: Tensor,
    running_var: Tensor,
    mean: Tensor,
    var: Tensor,
    momentum: float | Tensor,
    count: Tensor | None = None,
) -> bool | Tensor:
    """Move the running statistics in place: running += momentum * (batch - running), unless the batch is not finite.

    `count`, the number of batches seen, grows by 1 then.

    Returns:
        Whether the batch was finite and counted: a bool in eager mode on the CPU, elsewhere a boolean scalar tensor,
        decided on the device so that nothing waits for it.
    """
    finite = _blend(running_mean, running_var, mean, var, momentum)
    if count is not None:
        count.add_(finite)
    return finite


def _blend(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, momentum: float | Tensor
) -> bool | Tensor:
    statistics = (running_mean, running_var, mean, var)
    if kernels.kernels_available() and _is_eager(*statistics) and _are_statistics(mean.numel(), *statistics):
        return kernels.update_running(*statistics, float(momentum))
    pairs = ((running_mean, mean.to(running_mean.dtype)), (running_var, var.to(running_var.dtype)))
    if _is_eager(*statistics) and mean.device.type == running_mean.device.type == "cpu":
        finite = _all_finite(mean, var)
        if finite:
            for running, batch in pairs:
                running.lerp_(batch, momentum)
        return finite
    finite = (mean.isfinite() & var.isfinite()).all()
    for running, batch in pairs:
        running.copy_(torch.lerp(running, torch.where(finite, batch, running), momentum))
    return finite


def check_activation(activation: str | None) -> None:
    """Raise BatchNormError unless `activation` is None or one that can be fused."""
    if activation is not None and activation not in get_args(Activation):
        known = ", ".join(repr(name) for name in get_args(Activation))
        raise BatchNormError(f"activation must be None or one of {known}; got {activation!r}")


def check_running(x: Tensor, running_mean: Tensor | None, running_var: Tensor | None) -> None:
    """Raise unless the running statistics fit `x`: both or neither, one value a channel, without gradient.

    Raises:
        BatchNormError: one is missing, or autograd follows them.
        RuntimeError: they have another number of channels, in torch's words.
    """
    if running_mean is None and running_var is None:
        return
    if running_mean is None or running_var is None:
        given = "running_var" if running_mean is None else "running_mean"
        raise BatchNormError(f"batch normalization got only {given}; give both running statistics or neither")
    channels = x.shape[1] if x.dim() > 1 else 0
    for name, statistic in (("running_mean", running_mean), ("running_var", running_var)):
        if statistic.dim() != 1 or statistic.shape[0] != channels:
            raise RuntimeError(
                f"{name} should contain {channels} elements not {statistic.numel()}: the input of size "
                f"{tuple(x.shape)} has {channels} channels on axis 1, and {name} has shape {tuple(statistic.shape)}"
            )
    if running_mean.requires_grad or running_var.requires_grad:
        raise BatchNormError("running statistics are no parameters: call requires_grad_(False) on them")


def _check_batch(x: Tensor, eps: float) -> None:
    if eps <= 0.0:  # torch's own check is newer than the oldest torch that we run on
        raise BatchNormError(f"batch_norm eps must be positive during training, but got {eps}; the default is 1e-5")
    if x.dim() > 1 and x.numel() <= x.size(1) and x.shape[0] * x.shape[2:].numel() == 1:
        raise BatchNormError(
            f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}: a batch of one "
            "value has no variance. Use a larger batch (DataLoader(drop_last=True) drops a last batch of one), or "
            "normalise by running statistics: .eval() on a layer that tracks them."
        )


def _kernel_takes(x: Tensor, fewest: int, *channelwise: Tensor | None) -> bool:
    """The one rule of who computes: the compiled kernel, or else torch's operations.

    The kernel: in eager mode on the CPU, float32 or bfloat16, (N, C, S) or (N, S, C) without gaps, of `fewest` values
    or more, and each per-channel tensor float32 and contiguous. Every other device, dtype, stride and tensor type is
    torch's.
    """
    return (
        kernels.kernels_available()
        and _is_eager(x, *channelwise)
        and x.numel() >= fewest
        and _kernel_fits(x, *channelwise)
        and kernels.is_channels_last(x) is not None
        and not x.is_neg()  # its sign lies beside its memory, as in the imaginary part of a conjugate
    )


def _kernel_tracks(mean: Tensor, var: Tensor, momentum: float | Tensor, count: Tensor | None) -> bool:
    """Whether the kernel may move these running statistics, beside what `_kernel_takes` asks of them."""
    return (
        not isinstance(momentum, Tensor)
        and not (mean.requires_grad or var.requires_grad)
        and (count is None or (count.dtype == torch.int64 and count.is_cpu))
    )


def _kernel_operator_takes(x: Tensor, *channelwise: Tensor | None) -> bool:
    """Whether a tracer records the kernel as an operator; it looks at strides as it runs: sizes may be symbols yet."""
    traced = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0
    return traced and kernels.kernels_available() and _kernel_fits(x, *channelwise)


def _kernel_fits(x: Tensor, *channelwise: Tensor | None) -> bool:
    if not x.is_cpu or x.dtype not in kernels.DTYPES or x.layout != torch.strided or x.dim() < 2:
        return False
    return _are_statistics(x.size(1), *channelwise)


def _are_statistics(channels: int, *tensors: Tensor | None) -> bool:
    shape = (channels,)
    for t in tensors:  # not all(): this runs at every step of every layer
        if t is not None and not (t.dtype == torch.float32 and t.is_cpu and t.shape == shape and t.is_contiguous()):
            return False
    return True


def _is_eager(*tensors: Tensor | None) -> bool:
    """Whether these are ordinary tensors, read by no tracer, transform or mode."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() or torch._C._is_tracing():
        return False
    if peek_interpreter_stack() is not None or forward_ad._current_level >= 0:
        return False
    return {type(t) for t in tensors} <= _ORDINARY


def _needs_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _normalize_by_kernel(x: Tensor, weight: Tensor | None, bias: Tensor | None, *how: Any) -> tuple[Tensor, Any]:
    """z, and the batch's statistics; with running ones, whether they moved."""
    if _needs_grad(x, weight, bias):
        return _NormalizeByBatch.apply(x, weight, bias, *how)
    if len(how) == 3:
        return kernels.forward(x, weight, bias, *how)[:2]
    z, _, finite = kernels.forward_and_track(x, weight, bias, *how)
    return z, finite


class _NormalizeByBatch(torch.autograd.Function):
    """The kernel in eager mode: a fifth of the overhead of the operator below."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps, activation, slope, running=None):
        if running is None:
            z, found, saved = kernels.forward(x, weight, bias, eps, activation, slope)
            ctx.mark_non_differentiable(found)
        else:
            z, saved, found = kernels.forward_and_track(x, weight, bias, eps, activation, slope, running)
        ctx.save_for_backward(x, weight, bias, saved)
        ctx.fused = (eps, activation, slope)
        ctx.set_materialize_grads(False)
        return z, found

    @staticmethod
    def backward(ctx, *gradients):
        return *_gradients(ctx, gradients[0], kernels.backward), None, None, None, None


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
        z = _activate(_normalize_by_batch_in_torch(x, weight, bias, eps)[0], activation, slope)
    inputs = [t for t, want in zip((x, weight, bias), wanted, strict=True) if want]
    found = iter(torch.autograd.grad(z, inputs, dz, create_graph=True))
    return tuple(next(found) if want else None for want in wanted)


@torch.library.custom_op("batchnorm::normalize_by_batch", mutates_args=(), device_types="cpu")
def _normalize_by_batch(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, activation: str | None, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    """z, (mean, unbiased var), and what the backward wants: the kernel as `torch.compile` and `torch.export` see it."""
    dense, weight, bias = _as_kernel_takes(x, weight, bias)
    z, batch, saved = kernels.forward(dense, weight, bias, eps, activation, slope)
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
    dense, weight, bias = _as_kernel_takes(x, weight, bias)
    dx, dweight, dbias = kernels.backward(dz.to(dense.dtype), dense, weight, bias, saved, activation, slope)
    assert dx is not None
    return (dx if dense is x else torch.empty_like(x).copy_(dx)), dweight, dbias


def _as_kernel_takes(x: Tensor, *channelwise: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What an operator is called with, dense and of a dtype that the kernel has.

    A program may be cast, or run under autocast, after it was exported with other dtypes and strides.
    """
    x = x.float() if x.dtype == torch.float16 else x
    weight, bias = (t if t is None else t.float().contiguous() for t in channelwise)
    if not _kernel_fits(x, weight, bias):
        what = ", ".join("None" if t is None else f"{tuple(t.shape)} {t.dtype}" for t in (x, weight, bias))
        raise BatchNormError(
            "batchnorm::normalize_by_batch wants x of two axes or more, float32, bfloat16 or float16, and weight and "
            f"bias of its channels; got {what}. Export the network again in this dtype."
        )
    return (x if kernels.is_channels_last(x) is not None else x.contiguous()), weight, bias


@_normalize_by_batch.register_fake
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


_normalize_by_batch.register_autograd(_operator_gradients, setup_context=_set_up_context)


def _normalize_by_batch_in_torch(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    channels = x.shape[1] if x.dim() > 1 else 0
    # torch blends its running statistics in place: from zero with momentum 1 they become the batch's own.
    # An empty batch leaves them as they are, NaN then: there is nothing to blend in.
    start = 0.0 if x.numel() else math.nan
    mean, var = (x.new_full((channels,), start, dtype=_statistics_dtype(x)) for _ in range(2))
    return F.batch_norm(x, mean, var, weight, bias, training=True, momentum=1.0, eps=eps), mean, var


def _all_finite(mean: Tensor, var: Tensor) -> bool:
    # A finite sum has finite terms, and costs a third of the full check; an infinite one may have overflowed.
    return math.isfinite(float(mean.sum() + var.sum())) or bool((mean.isfinite() & var.isfinite()).all())


def _statistics_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _widened(x: Tensor, channels: MaybeTensor) -> MaybeTensor:
    # Beside a half-precision x torch takes all of mean, var, gamma and beta in float32, or none of them.
    if channels is None or channels.dtype == torch.float32 or _statistics_dtype(x) == x.dtype:
        return channels
    return channels.float()


def _activate(y: Tensor, activation: Activation | None, negative_slope: float) -> Tensor:
    # In place, since y is ours alone and its own backward never reads it.
    match activation:
        case "relu":
            return torch.relu_(y)
        case "leaky_relu":
            if negative_slope < 0:  # torch's in-place backward can't tell the two sides apart then
                return F.leaky_relu(y, negative_slope)
            return F.leaky_relu_(y, negative_slope)
        case "sigmoid":
            return torch.sigmoid_(y)
        case None:
            return y
