"""Algorithm 1 with torch's own operations, for every device, dtype and stride."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .activation import Transform


def normalize_by_batch(x: Tensor, how: Transform) -> tuple[Tensor, Tensor, Tensor]:
    """Return y = BN(x), before the residual and the activation, and the mean and unbiased variance of the batch."""
    channels = x.shape[1] if x.dim() > 1 else 0
    # torch updates its running statistics in place. From zero, with momentum 1, they become the batch's own.
    # An empty batch does not update them, so they start as NaN.
    start = 0.0 if x.numel() else math.nan
    dtype = torch.promote_types(x.dtype, torch.float32)
    mean, var = (x.new_full((channels,), start, dtype=dtype) for _ in range(2))  # vmap wants two tensors, not views
    return F.batch_norm(x, mean, var, how.weight, how.bias, training=True, momentum=1.0, eps=how.eps), mean, var


def normalize_by_virtual_batches(x: Tensor, how: Transform, size: int) -> Tensor:
    """Return y = BN(x) by virtual batches of `size` examples, or by the whole batch if it is 0."""
    if not size:
        return normalize_by_batch(x, how)[0]
    return torch.cat([normalize_by_batch(part, how)[0] for part in x.split(virtual_batches(len(x), size))])


def virtual_batches(examples: int, size: int) -> list[int]:
    """Return the number of examples of each virtual batch. A short last one is part of the one before it."""
    parts = max(1, examples // size) if size else 1
    return [*[size] * (parts - 1), examples - size * (parts - 1)]


def update_on_host(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, momentum: float | Tensor
) -> bool:
    """Move the running statistics in place if the batch is finite. Return True if it is. Read values on the host."""
    finite = _all_finite(mean, var)
    if finite:
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        running_var.lerp_(var.to(running_var.dtype), momentum)
    return finite


def update_on_device(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, momentum: float | Tensor
) -> Tensor:
    """Move the running statistics in place if the batch is finite. Decide on the device, without synchronization."""
    # 0 times infinity or NaN is NaN, which equals nothing. `mean - mean` is no such test: on GPUs torch.compile fuses
    # a * b - a * b into one multiply-add, which gives the rounding error.
    finite = (mean * 0 == var * 0).all()
    for running, batch in ((running_mean, mean), (running_var, var)):
        target = torch.where(finite, batch.to(running.dtype), running)
        running.copy_(torch.lerp(running, target, momentum))  # vmap has no lerp_
    return finite


def _all_finite(mean: Tensor, var: Tensor) -> bool:
    # A finite sum has finite terms and takes a third of the time. A sum that is not finite may only have overflowed.
    return math.isfinite(float(mean.sum() + var.sum())) or bool((mean.isfinite() & var.isfinite()).all())
