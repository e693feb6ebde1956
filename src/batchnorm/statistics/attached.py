"""Give any BN layer, ours or torch's, another way to take its statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from ..errors import BatchNormError
from ..kernels import batches
from ..kernels.activation import Transform
from ..kernels.batches import Special
from ..kernels.bindings import Running
from ..layers import FusedBatchNorm

_FORWARD = "forward"  # an attribute of the instance hides the method of the class


def layers_of(model: nn.Module, what: str) -> dict[str, _BatchNorm]:
    """Return the BN layers by name. Raise BatchNormError with `what` if there is none."""
    found = {name: layer for name, layer in model.named_modules() if isinstance(layer, _BatchNorm)}
    if not found:
        raise BatchNormError(f"{type(model).__name__} has no BatchNorm layer: nothing to {what}")
    return found


def special_of(layer: _BatchNorm) -> Special:
    """Return what is special about a layer. Changes of it apply from its next forward on."""
    if isinstance(layer, FusedBatchNorm):
        layer._special = layer._special or Special()
        return layer._special
    forward = vars(layer).get(_FORWARD)
    if isinstance(forward, partial) and forward.func is _forward:
        return forward.args[1]
    special = Special()
    setattr(layer, _FORWARD, partial(_forward, layer, special))
    return special


def settle(layer: _BatchNorm) -> None:
    """Make a layer an ordinary one again if nothing is special about it any more."""
    if special_of(layer):
        return
    if isinstance(layer, FusedBatchNorm):
        layer._special = None
    else:
        delattr(layer, _FORWARD)


@contextmanager
def restored(layers: dict[str, _BatchNorm], field: str) -> Iterator[None]:
    """At the end, give a field of every layer's `Special` the value that it had before."""
    before = {name: getattr(special_of(layer), field) for name, layer in layers.items()}
    try:
        yield
    finally:
        for name, layer in layers.items():
            setattr(special_of(layer), field, before[name])
            settle(layer)


def _forward(layer: _BatchNorm, special: Special, *args: Any, **kwargs: Any) -> Any:
    """Call the forward of torch's layer, or of any subclass, with its `F.batch_norm` replaced."""
    # On a CPU, torch's SyncBatchNorm refuses to run in a process group. Its base class does the rest alike.
    kind = _BatchNorm if type(layer) is nn.SyncBatchNorm else type(layer)
    with _Replaced(special):
        return kind.forward(layer, *args, **kwargs)


class _Replaced(TorchFunctionMode):
    def __init__(self, special: Special) -> None:
        super().__init__()
        self._special = special

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        called = self._batch_norm if func is F.batch_norm else func
        return called(*args, **(kwargs or {}))

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        running = None
        if running_mean is not None and running_var is not None:
            running = Running(running_mean, running_var, momentum)
        with torch._C.DisableTorchFunction():
            return batches.batch_norm(input, Transform(weight, bias, eps), running, training, self._special)[0]
