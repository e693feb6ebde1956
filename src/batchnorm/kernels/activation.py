"""The residual and the activation that follow batch normalization: z = g(BN(x) + residual)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Activation = Literal["relu", "leaky_relu", "relu6", "sigmoid", "silu", "hardswish", "gelu", "gelu_tanh"]


class Transform(NamedTuple):
    """All that z = g(BN(x) + residual) needs beside x and its statistics.

    Arguments:
        weight: gamma, (C,), or None for 1.
        bias: beta, (C,), or None for 0.
        eps: added to the variance, inside the square root.
        activation: g, or None for the identity.
        slope: slope of the leaky ReLU below 0.
        residual: shaped like x, or None for 0.
    """

    weight: Tensor | None
    bias: Tensor | None
    eps: float
    activation: Activation | None = None
    slope: float = 0.01
    residual: Tensor | None = None


# Each activation as torch's function of y and of the slope below 0.
FUNCTIONS: dict[Activation | None, Callable[[Tensor, float], Tensor]] = {
    None: lambda y, _: y,
    "relu": lambda y, _: F.relu(y),
    "leaky_relu": F.leaky_relu,
    "relu6": lambda y, _: F.relu6(y),
    "sigmoid": lambda y, _: torch.sigmoid(y),
    "silu": lambda y, _: F.silu(y),
    "hardswish": lambda y, _: F.hardswish(y),
    "gelu": lambda y, _: F.gelu(y),
    "gelu_tanh": lambda y, _: F.gelu(y, approximate="tanh"),
}


def finish(y: Tensor, how: Transform) -> Tensor:
    """Add the residual and apply the activation. The caller must own `y`, whose own backward must not read it."""
    residual = how.residual
    if residual is not None:
        y = y.add_(residual) if residual.dtype == y.dtype else y + residual
    match how.activation:
        case "relu":
            return torch.relu_(y)
        case "leaky_relu" if how.slope >= 0:  # torch's in-place backward cannot tell the two sides apart below
            return F.leaky_relu_(y, how.slope)
        case "sigmoid":
            return torch.sigmoid_(y)
    return FUNCTIONS[how.activation](y, how.slope)
