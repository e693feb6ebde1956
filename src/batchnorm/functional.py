"""Algorithm 1: validation, then the one place that chooses who computes it."""

from __future__ import annotations

import math
from typing import TypeVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.nn import Parameter

from .errors import BatchNormError
from .kernels import autograd, bindings, fallback
from .kernels.fallback import Activation

# Values below which torch's operation takes less time than the way to the kernel. In training the kernel is faster than
# torch's operations under the same layer at any size: benchmarks/bench_threshold.py.
FEWEST_IN_INFERENCE = 32768

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
    if running_mean is None or running_var is None:
        check_running(x, running_mean, running_var)
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
    weight, bias = _widened(x, weight, bias)
    fused = activation if activation in bindings.ACTIVATIONS else None
    if _kernel_takes(x, 1, weight, bias):
        z, batch = autograd.eager(x, weight, bias, eps, fused, negative_slope)
        mean, var = batch.unbind()
    elif _kernel_operator_takes(x, weight, bias):
        z, batch, _ = autograd.operator(x, weight, bias, eps, fused, negative_slope)
        mean, var = batch.unbind()
    else:
        z, mean, var = fallback.normalize_by_batch(x, weight, bias, eps)
        fused = None
    return (z if fused == activation else fallback.activate(z, activation, negative_slope)), mean, var


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
    fused = activation if activation in bindings.ACTIVATIONS else None
    # What the kernel takes needs no other check but that of the batch: between its passes over memory every call from
    # Python waits for the caches, and costs several times what it does alone.
    statistics = (weight, bias, running_mean, running_var)
    if _kernel_takes(x, 1, *statistics) and _kernel_tracks(running_mean, running_var, momentum, count):
        _check_batch(x, eps)
        running = (running_mean, running_var, momentum, count)
        z, finite = autograd.eager(x, weight, bias, eps, fused, negative_slope, running)
        return (z if fused == activation else fallback.activate(z, activation, negative_slope)), finite
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
    """Normalise `x` by statistics that are constants: the inference half of Alg. 2, line 11.

    Raises: what `check_running` raises.
    """
    mean, var = _widened(x, mean, var)
    weight, bias = _widened(x, weight, bias)
    constant = not (mean.requires_grad or var.requires_grad or autograd.needs_grad(x, weight, bias))
    # Compilers fuse this one with its neighbours, and exporters know it: the kernel is for eager mode.
    if constant and _kernel_takes(x, FEWEST_IN_INFERENCE, weight, bias, mean, var):
        fused = activation if activation in bindings.ACTIVATIONS else None
        z = bindings.inference(x, mean, var, weight, bias, eps, fused, negative_slope)
        return z if fused == activation else fallback.activate(z, activation, negative_slope)
    check_running(x, mean, var)
    y = F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)
    return fallback.activate(y, activation, negative_slope)


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
    if bindings.kernels_available() and _is_eager(*statistics) and bindings.are_statistics(mean.numel(), *statistics):
        return bindings.update_running(*statistics, float(momentum))
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
        bindings.kernels_available()
        and _is_eager(x, *channelwise)
        and x.numel() >= fewest
        and bindings.fits(x, *channelwise)
        and bindings.is_channels_last(x) is not None
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
    return traced and bindings.kernels_available() and bindings.fits(x, *channelwise)


def _is_eager(*tensors: Tensor | None) -> bool:
    """Whether these are ordinary tensors, read by no tracer, transform or mode."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() or torch._C._is_tracing():
        return False
    if peek_interpreter_stack() is not None or forward_ad._current_level >= 0:
        return False
    return {type(t) for t in tensors} <= _ORDINARY


def _all_finite(mean: Tensor, var: Tensor) -> bool:
    # A finite sum has finite terms, and costs a third of the full check; an infinite one may have overflowed.
    return math.isfinite(float(mean.sum() + var.sum())) or bool((mean.isfinite() & var.isfinite()).all())


def _widened(x: Tensor, *channelwise: MaybeTensor) -> tuple[MaybeTensor, ...]:
    # Beside a half-precision x torch takes all of mean, var, gamma and beta in float32, or none of them.
    if x.dtype not in (torch.float16, torch.bfloat16):
        return channelwise
    return tuple(c if c is None or c.dtype == torch.float32 else c.float() for c in channelwise)
