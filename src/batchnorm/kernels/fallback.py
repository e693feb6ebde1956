"""Algorithm 1 by torch's own operations: every device, dtype and stride, and double backward."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Activation = Literal["relu", "leaky_relu", "sigmoid"]


def normalize_by_batch(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """z, mean and unbiased variance of the batch."""
    channels = x.shape[1] if x.dim() > 1 else 0
    # torch blends its running statistics in place: from zero with momentum 1 they become the batch's own.
    # An empty batch leaves them as they are, NaN then: there is nothing to blend in.
    start = 0.0 if x.numel() else math.nan
    dtype = torch.promote_types(x.dtype, torch.float32)
    mean, var = (x.new_full((channels,), start, dtype=dtype) for _ in range(2))
    return F.batch_norm(x, mean, var, weight, bias, training=True, momentum=1.0, eps=eps), mean, var


def activate(y: Tensor, activation: Activation | None, negative_slope: float) -> Tensor:
    """g(y), in place: y is ours alone, and its own backward never reads it."""
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
