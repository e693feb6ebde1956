"""The vocabulary of operations: one name for every way to call one, and the groups that the transforms tell apart.

A name is in lower case without underscores: `nn.LeakyReLU`, `F.leaky_relu` and `x.leaky_relu_()` are "leakyrelu".
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ..kernels.activation import Activation
from ..torch_private import AnyBatchNorm, OpOverload

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
# The nonlinearities that a layer of this package can apply itself.
FUSIBLE: dict[str, Activation] = {
    "relu": "relu",
    "leakyrelu": "leaky_relu",
    "relu6": "relu6",
    "sigmoid": "sigmoid",
    "silu": "silu",
    "hardswish": "hardswish",
    "gelu": "gelu",
}

DROPOUTS = frozenset(
    {"dropout", "dropout1d", "dropout2d", "dropout3d", "alphadropout", "featuredropout", "featurealphadropout"}
)
LOCAL_RESPONSE_NORMS = frozenset({"localresponsenorm"})
COPIES = frozenset({"contiguous", "clone", "detach", "alias"})
IDENTITIES_IN_EVAL = DROPOUTS | COPIES | {"identity"}

RESHAPES = frozenset(
    {"flatten", "reshape", "view", "unflatten", "squeeze", "unsqueeze", "reshapeas", "viewas", "unsafeview"}
)
CROPS = frozenset({"getitem", "slice", "narrow", "select"})
# Every output value is an input value. Some input values may be missing, others repeated.
MOVES = (
    RESHAPES
    | CROPS
    | COPIES
    | {"permute", "transpose", "swapaxes", "movedim", "t", "cat", "concat", "concatenate", "stack", "chunk", "split"}
    | {"splitwithsizes", "unbind", "flip", "roll", "tensorsplit", "channelshuffle", "pixelshuffle", "pixelunshuffle"}
    | {"expand", "expandas", "repeat", "tile"}
)
# Of their second argument these calls read the shape alone.
SHAPED_LIKE = frozenset({"reshapeas", "viewas", "expandas"})
AVERAGES = frozenset(
    {f"{kind}{rank}d" for kind in ("avgpool", "adaptiveavgpool", "upsamplenearest") for rank in (1, 2, 3)}
    | {"mean", "interpolate", "upsample", "upsamplebilinear2d", "upsamplebicubic2d", "upsamplelinear1d"}
)
MAXIMA = frozenset({f"{kind}{rank}d" for kind in ("maxpool", "adaptivemaxpool") for rank in (1, 2, 3)} | {"amax"})

SUMS = frozenset({"add", "iadd"})
SUMS_AND_DIFFERENCES = SUMS | {"sub"}
ARITHMETIC = frozenset({"add", "sub", "mul", "div", "truediv"})
IN_PLACE_OPERATORS = frozenset({"iadd", "isub", "imul", "itruediv", "setitem"})
# Without a user these calls do nothing. Tracing leaves them behind.
READS = frozenset({"getattr", "eq", "ne", "getitem"})

_HOMES_OF_FUNCTIONS = ("torch", "_operator", "operator", "builtins", "math")


def plain_name(name: str) -> str:
    """Return a name in lower case without underscores."""
    return name.replace("_", "").lower()


AFFINE = frozenset(plain_name(layer.__name__) for layer in AFFINE_LAYERS)


def layer_name(layer: nn.Module) -> str:
    """Return the name of a layer's operation, or "" for a layer that torch does not define.

    Every batch normalization is "batchnorm". A subclass of an affine layer has the name of that layer.
    """
    if isinstance(layer, AnyBatchNorm):
        return "batchnorm"
    for base in AFFINE_LAYERS:
        if isinstance(layer, base):
            return plain_name(base.__name__)
    return plain_name(type(layer).__name__) if type(layer).__module__.startswith("torch.nn") else ""


def function_name(target: Any) -> str:
    """Return the name of a function or exported operator, or "" for one that is neither torch's nor Python's."""
    if isinstance(target, OpOverload):
        return plain_name(target._opname) if target.namespace == "aten" else ""
    home = getattr(target, "__module__", None) or "torch"  # torch's built-in functions have no __module__
    return plain_name(getattr(target, "__name__", "")) if home.split(".")[0] in _HOMES_OF_FUNCTIONS else ""
