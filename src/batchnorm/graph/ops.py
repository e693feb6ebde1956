"""One name for every way to call a thing, and the kinds of things that the transforms tell apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

AFFINE_LAYERS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
NONLINEARITIES = frozenset(
    {
        "relu",
        "relu6",
        "leakyrelu",
        "prelu",
        "rrelu",
        "elu",
        "selu",
        "celu",
        "gelu",
        "silu",
        "mish",
        "sigmoid",
        "logsigmoid",
        "tanh",
        "softplus",
        "softsign",
        "hardtanh",
        "hardsigmoid",
        "hardswish",
        "threshold",
        "clamp",
        "clampmin",
    }
)
RESHAPES = frozenset(
    {"flatten", "reshape", "view", "unflatten", "squeeze", "unsqueeze", "reshapeas", "viewas", "unsafeview"}
)
CROPS = frozenset({"getitem", "slice", "narrow", "select"})
NOTHING_IN_EVAL = frozenset(
    {
        "identity",
        "dropout",
        "dropout1d",
        "dropout2d",
        "dropout3d",
        "alphadropout",
        "featuredropout",
        "featurealphadropout",
        "contiguous",
        "clone",
        "detach",
        "alias",
    }
)


IN_PLACE_OPERATORS = frozenset({"iadd", "isub", "imul", "itruediv", "setitem"})
_FUNCTIONS_OF = ("torch", "_operator", "operator", "builtins", "math")


def plain_name(name: str) -> str:
    return name.replace("_", "").lower()


AFFINE_NAMES = frozenset(plain_name(layer.__name__) for layer in AFFINE_LAYERS)


def layer_name(layer: nn.Module) -> str:
    if isinstance(layer, _BatchNorm):
        return "batchnorm"
    for base in AFFINE_LAYERS:
        if isinstance(layer, base):
            return plain_name(base.__name__)
    return plain_name(type(layer).__name__) if type(layer).__module__.startswith("torch.nn") else ""


def function_name(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return plain_name(target._opname) if target.namespace == "aten" else ""
    home = getattr(target, "__module__", None) or "torch"  # torch's built-in functions have no __module__
    return plain_name(getattr(target, "__name__", "")) if home.split(".")[0] in _FUNCTIONS_OF else ""
