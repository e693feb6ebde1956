"""Algorithm 1 and its gradient: validation, then the one place that chooses who computes it."""

from __future__ import annotations

import math
from typing import Literal, TypeVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from .errors import BatchNormError

Activation = Literal["relu", "leaky_relu", "sigmoid"]
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
        BatchNormError: an unknown activation, running statistics missing, or, in training, one value per channel or
            an eps that is not positive.
        ValueError, RuntimeError: torch's own, for a shape that does not fit.
    """
    check_activation(activation)
    if (running_mean is None) != (running_var is None):
        given = "running_var" if running_mean is None else "running_mean"
        raise BatchNormError(f"batch_norm got only {given}; give both running statistics or neither")
    if training:
        z, mean, var = normalize_by_batch(x, weight, bias, eps, activation, negative_slope)
        if running_mean is not None and running_var is not None:
            update_running(running_mean, running_var, mean, var, momentum)
        return z
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
    channels = x.shape[1] if x.dim() > 1 else 0
    # torch blends its running statistics in place: from zero with momentum 1 they become the batch's own.
    dtype = _statistics_dtype(x)
    mean, var = x.new_zeros(channels, dtype=dtype), x.new_zeros(channels, dtype=dtype)
    weight, bias = _widened(x, weight), _widened(x, bias)
    y = F.batch_norm(x, mean, var, weight, bias, training=True, momentum=1.0, eps=eps)
    return _activate(y, activation, negative_slope), mean, var


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
    y = F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)
    return _activate(y, activation, negative_slope)


@torch.no_grad()
def update_running(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, momentum: float | Tensor
) -> bool | Tensor:
    """Move the running statistics in place: running += momentum * (batch - running), unless the batch is not finite.

    Returns:
        Whether the batch was finite and counted: a bool in eager mode on the CPU, elsewhere a boolean scalar tensor,
        decided on the device so that nothing waits for it.
    """
    pairs = ((running_mean, mean.to(running_mean.dtype)), (running_var, var.to(running_var.dtype)))
    if _readable(mean) and _readable(running_mean):
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


def _check_batch(x: Tensor, eps: float) -> None:
    if eps <= 0.0:  # torch's own check is newer than the oldest torch that we run on
        raise BatchNormError(f"batch_norm eps must be positive during training, but got {eps}; the default is 1e-5")
    if x.dim() > 1 and x.shape[0] * x.shape[2:].numel() == 1:
        raise BatchNormError(
            f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}: a batch of one "
            "value has no variance. Use a larger batch (DataLoader(drop_last=True) drops a last batch of one), or "
            "call .eval() on the layer to normalise by the running statistics."
        )


def _readable(x: Tensor) -> bool:
    """Whether Python may read values of `x` for nothing: eager, on the CPU, outside every tracer and transform."""
    return (
        type(x) is Tensor
        and x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not is_functorch_wrapped_tensor(x)
    )


def _all_finite(mean: Tensor, var: Tensor) -> bool:
    # A finite sum has finite terms, and costs a third of the full check; an infinite one may have overflowed.
    return math.isfinite(float(mean.sum() + var.sum())) or bool((mean.isfinite() & var.isfinite()).all())


def _statistics_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _widened(x: Tensor, channels: MaybeTensor) -> MaybeTensor:
    # Beside a half-precision x torch takes all of mean, var, gamma and beta in float32, or none of them.
    return channels if channels is None or _statistics_dtype(x) == x.dtype else channels.float()


def _activate(y: Tensor, activation: Activation | None, negative_slope: float) -> Tensor:
    # In place, since y is ours alone and its own backward never reads it.
    match activation:
        case "relu":
            return torch.relu_(y)
        case "leaky_relu":
            return F.leaky_relu_(y, negative_slope)
        case "sigmoid":
            return torch.sigmoid_(y)
        case None:
            return y
