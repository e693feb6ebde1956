"""Argument checks that the function and the layers share."""

from __future__ import annotations

from typing import get_args

from torch import Tensor

from ..errors import BatchNormError
from .activation import Activation


def check_activation(activation: str | None) -> None:
    """Raise BatchNormError unless `activation` is None or a known name."""
    if activation is not None and activation not in get_args(Activation):
        known = ", ".join(repr(name) for name in get_args(Activation))
        raise BatchNormError(f"activation must be None or one of {known}; got {activation!r}")


def check_running(x: Tensor, running_mean: Tensor | None, running_var: Tensor | None) -> None:
    """Raise unless both running statistics fit the channels of `x`, or both are None.

    Raises:
        BatchNormError: only one is given, or one requires a gradient.
        RuntimeError: a shape does not match the channels of `x`. The message begins like torch's.
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


def check_residual(x: Tensor, residual: Tensor | None) -> None:
    """Raise BatchNormError unless the residual is None or has the shape of `x`."""
    if residual is not None and residual.shape != x.shape:
        raise BatchNormError(
            f"batch normalization got a residual of shape {tuple(residual.shape)}; wanted the shape of the input, "
            f"{tuple(x.shape)}. Expand it first."
        )


def check_eps(eps: float) -> None:
    """Raise BatchNormError if eps is not positive. The oldest supported torch has no such check."""
    if eps <= 0.0:
        raise BatchNormError(f"batch_norm eps must be positive during training, but got {eps}; the default is 1e-5")


def check_batch(x: Tensor, eps: float) -> None:
    """Raise BatchNormError if `x` has one value per channel, or if eps is not positive."""
    check_eps(eps)
    if x.dim() > 1 and x.numel() <= x.size(1) and x.shape[0] * x.shape[2:].numel() == 1:
        raise BatchNormError(
            f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}: a batch of one "
            "value has no variance. Use a larger batch (DataLoader(drop_last=True) drops a last batch of one), or "
            "normalize by running statistics: call .eval() on a layer that tracks them."
        )
