"""`batch_norm`, batch normalization as a function (Alg. 1)."""

from __future__ import annotations

from torch import Tensor

from .errors import BatchNormError
from .kernels import dispatch
from .kernels.activation import Activation, Transform
from .kernels.bindings import Running
from .kernels.checks import check_activation, check_running

__all__ = ["batch_norm"]


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
    residual: Tensor | None = None,
) -> Tensor:
    """Normalize `x` per channel, add `residual`, apply `activation`: z = g(BN(x) + residual) (Alg. 1, Sec. 3.2).

    BN(x) = weight * (x - mean) / sqrt(var + eps) + bias, with one mean and variance per channel (axis 1).

    Training uses the mean and the biased variance of the batch, and the gradient flows through both. Given running
    statistics move in place by `momentum` toward the mean and unbiased variance of the batch. A batch whose mean or
    variance is not finite leaves them unchanged. (In torch, one inf makes them inf or NaN forever.)

    Inference uses the running statistics.

    Arguments:
        x: (N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W).
        running_mean: (C,), in float32 or float64. None in training if nothing is tracked.
        running_var: as `running_mean`. Give both or neither.
        weight: gamma, (C,), or None for 1.
        bias: beta, (C,), or None for 0.
        training: normalize by the batch (True) or by the running statistics (False).
        momentum: weight of the *new* batch in the running statistics, as in torch.
        eps: added to the variance, inside the square root.
        activation: None, "relu", "leaky_relu", "relu6", "sigmoid", "silu", "hardswish", "gelu" or "gelu_tanh".
        negative_slope: slope of the leaky ReLU below 0.
        residual: shaped like `x`, added before the activation, or None.

    Returns:
        z, with the shape, dtype and memory format of `x`.

    Raises:
        BatchNormError: the activation is unknown, momentum is None, running statistics are missing, or the residual
            has another shape than `x`. In training, also one value per channel, or an eps that is not positive.
        ValueError, RuntimeError: from torch, if a shape does not fit.

    Example:
        >>> import torch
        >>> import batchnorm as bn
        >>> x = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
        >>> running_mean, running_var = torch.zeros(2), torch.ones(2)
        >>> bn.functional.batch_norm(x, running_mean, running_var, training=True, activation="relu")
        tensor([[0.0000, 0.0000],
                [1.0000, 1.0000]])
        >>> running_mean
        tensor([0.2000, 2.0000])
    """
    check_activation(activation)
    how = Transform(weight, bias, eps, activation, negative_slope, residual)
    if running_mean is None or running_var is None:
        check_running(x, running_mean, running_var)  # refuses one without the other
        if not training:
            raise BatchNormError(
                "batch_norm with training=False wants running_mean and running_var; got None. "
                "Give both, or normalize by the batch with training=True."
            )
        return dispatch.normalize_by_batch(x, how)[0]
    if not training:
        return dispatch.normalize(x, running_mean, running_var, how)
    if momentum is None:
        raise BatchNormError("batch_norm wants a number for momentum; got None, which only layers accept")
    return dispatch.normalize_and_track(x, how, Running(running_mean, running_var, momentum))[0]
