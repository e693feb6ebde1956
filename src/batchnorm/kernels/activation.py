"""The activations that batch normalization can apply to its output."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Activation = Literal["relu", "leaky_relu", "sigmoid"]


def activate(y: Tensor, activation: Activation | None, negative_slope: float) -> Tensor:
    """Apply the activation in place. The caller must own `y`, whose own backward must not read it."""
    match activation:
        case "relu":
            return torch.relu_(y)
        case "leaky_relu":
            if negative_slope < 0:  # torch's in-place backward cannot distinguish the two sides then
                return F.leaky_relu(y, negative_slope)
            return F.leaky_relu_(y, negative_slope)
        case "sigmoid":
            return torch.sigmoid_(y)
        case None:
            return y
