"""Give any BN layer, ours or torch's, another way to take its statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import BatchNormError
from ..kernels import batches
from ..kernels.activation import Transform
from ..kernels.batches import Special
from ..kernels.bindings import Running
from ..layers import FusedBatchNorm
from ..torch_private import AnyBatchNorm, DisableTorchFunction

_FORWARD = "forward"  # an attribute of the instance hides the method of the class


def layers_of(model: nn.Module, what: str) -> dict[str, AnyBatchNorm]:
    """Return the BN layers by name. Raise BatchNormError with `what` if there is none."""
    found = {name: layer for name, layer in model.named_modules() if isinstance(layer, AnyBatchNorm)}
    if not found:
        raise BatchNormError(f"{type(model).__name__} has no BatchNorm layer: nothing to {what}")
    return found


def refuse_lazy(layers: Mapping[str, AnyBatchNorm], what: str) -> None:
    """Raise BatchNormError if a layer is lazy and has no channels yet."""
    lazy = next((name for name, layer in layers.items() if layer.num_features == 0), None)
    if lazy is not None:
        raise BatchNormError(f"layer {lazy!r} has no channels yet. Call the network once, then {what} it.")


def special_of(layer: AnyBatchNorm) -> Special:
    """Return what is special about a layer. Changes of it apply from its next forward on."""
    if isinstance(layer, FusedBatchNorm):
        layer._special = layer._special or Special()
        return layer._special
    hiding = vars(layer).get(_FORWARD)
    if not isinstance(hiding, _Forward):
        hiding = _Forward(layer, Special(), hiding)
        setattr(layer, _FORWARD, hiding)
    return hiding.special


def settle(layer: AnyBatchNorm) -> None:
    """Make a layer an ordinary one again if nothing is special about it any more."""
    if isinstance(layer, FusedBatchNorm):
        layer._special = layer._special or None
        return
    hiding = vars(layer).get(_FORWARD)
    if isinstance(hiding, _Forward) and not hiding.special:
        delattr(layer, _FORWARD)
        if hiding.hidden is not None:
            setattr(layer, _FORWARD, hiding.hidden)


@contextmanager
def replaced(layers: Mapping[str, AnyBatchNorm], field: str, values: Mapping[str, Any]) -> Iterator[None]:
    """Within the block, give a field of each layer's `Special` a value. Restore the value before it at the end."""
    specials = {name: special_of(layer) for name, layer in layers.items()}
    before = {name: getattr(special, field) for name, special in specials.items()}
    try:
        for name, special in specials.items():
            setattr(special, field, values[name])
        yield
    finally:
        for name, special in specials.items():
            setattr(special, field, before[name])
            settle(layers[name])


@dataclass(eq=False)
class _Forward:
    """The forward of torch's layer, or of any subclass, with its `F.batch_norm` replaced.

    Arguments:
        layer: the layer.
        special: what its batch normalization does instead.
        hidden: a forward that another library has given to the instance, or None. It is called in place of the class's.
    """

    layer: AnyBatchNorm
    special: Special
    hidden: Callable[..., Any] | None

    @batches.eagerly
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.special:  # a copy made within a block has no part in it
            settle(self.layer)
            return self.layer.forward(*args, **kwargs)
        view = _of_one_process(self.layer)
        forward = self.hidden or type(view).forward.__get__(view)
        count = self.layer.num_batches_tracked if self.layer.training and self.layer.track_running_stats else None
        seen = None if count is None else count.clone()
        try:
            with _Replaced(self.special, seen) as mode:
                z = forward(*args, **kwargs)
        finally:
            if count is not None and seen is not None:  # torch counts any batch, also one that moves nothing
                count.copy_(seen)
        if not mode.called:
            raise BatchNormError(
                f"{type(self.layer).__name__} does not call torch.nn.functional.batch_norm, so its statistics cannot "
                "be masked, accumulated or synchronized. Replace it with torch's layer or ours."
            )
        return z


class _OneProcess(nn.SyncBatchNorm):
    """torch's layer without its exchange, which CPUs and masks lack. The forward of its base class does the rest."""

    forward = AnyBatchNorm.forward


def _of_one_process(layer: AnyBatchNorm) -> AnyBatchNorm:
    """Return the layer. For a SyncBatchNorm, return a view of it that calls `F.batch_norm` in any process."""
    if not isinstance(layer, nn.SyncBatchNorm):
        return layer
    kind = _without_exchange(type(layer))
    view = kind.__new__(kind)
    object.__setattr__(view, "__dict__", vars(layer))  # the same parameters, buffers and settings
    return view


@cache
def _without_exchange(kind: type[nn.SyncBatchNorm]) -> type[nn.SyncBatchNorm]:
    # In the method resolution order `_OneProcess` comes behind a subclass, so that its `super().forward` arrives there.
    return _OneProcess if kind is nn.SyncBatchNorm else type(kind.__name__, (kind, _OneProcess), {})  # pyright: ignore[reportGeneralTypeIssues]


class _Replaced(TorchFunctionMode):
    def __init__(self, special: Special, batches_seen: Tensor | None) -> None:
        super().__init__()
        self._special, self._batches_seen = special, batches_seen
        self.called = False

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
        self.called = True
        running = None
        if running_mean is not None and running_var is not None:
            running = Running(running_mean, running_var, momentum, self._batches_seen)
        with DisableTorchFunction():
            return batches.batch_norm(input, Transform(weight, bias, eps), running, training, self._special)[0]
