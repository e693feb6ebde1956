"""Run batches through a network whose BN layers normalize by the batch, and record the moments of their inputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..graph.batches import in_eval
from ..kernels import dispatch
from ..kernels.batches import Special
from ..kernels.meeting import Alone
from ..kernels.packing import Packed, as_mask
from ..layers import FusedBatchNorm
from ..moments import Moments
from ..torch_private import AnyBatchNorm
from .estimator import Estimate


class Tracked(NamedTuple):
    """Hold a BN layer and its running statistics."""

    layer: AnyBatchNorm
    mean: Tensor
    var: Tensor


class Observed(NamedTuple):
    """Hold an estimate per layer, and one sentence per batch that was left out."""

    estimates: dict[str, Estimate]
    left_out: list[str]


Seen = list[tuple[str, Moments]]


def observe(
    model: nn.Module,
    layers: dict[str, Tracked],
    batches: Iterable[Any],
    forward: Callable[[nn.Module, Any], object],
) -> Observed:
    """Run the batches and estimate the statistics of each layer's input.

    A batch counts for all layers or for none. One that cannot count is left out with a warning.
    """
    estimates = {name: Estimate.empty(tracked.mean) for name, tracked in layers.items()}
    left_out: list[str] = []
    seen: Seen = []
    with on_batch_statistics(model, layers), _recording(layers, seen):
        for index, batch in enumerate(batches):
            seen.clear()
            try:
                forward(model, batch)
                _check_finite(seen)
            except LeaveOut as reason:
                left_out.append(f"Batch {index} was left out: {reason}.")
                warnings.warn(left_out[-1], RuntimeWarning, stacklevel=3)
                continue
            for name, moments in seen:
                estimates[name] = estimates[name].merge(Estimate.from_moments(moments))
    return Observed(estimates, left_out)


class LeaveOut(BaseException):
    """Stop the forward of a batch that must not count.

    It is no Exception, because `run_batch` turns every Exception of a network into a BatchNormError.
    """


@contextmanager
def on_batch_statistics(model: nn.Module, layers: dict[str, Tracked]) -> Iterator[None]:
    """Put the network in eval mode, and take the running statistics away from `layers`.

    Without running statistics every kind of BN layer normalizes by the batch, and tracks nothing. Neither SyncBatchNorm
    nor `bn.synchronize` waits for other processes, which may have another number of batches.
    """
    specials = [special for layer, _, _ in layers.values() if (special := _special(layer)) and special.meeting]
    meetings = [special.meeting for special in specials]
    try:
        for special in specials:
            special.meeting = Alone()
        for layer, _, _ in layers.values():
            layer.running_mean = layer.running_var = None
        with in_eval(model), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for layer, mean, var in layers.values():
            layer.running_mean, layer.running_var = mean, var
        for special, meeting in zip(specials, meetings, strict=True):
            special.meeting = meeting


@contextmanager
def _recording(layers: dict[str, Tracked], seen: Seen) -> Iterator[None]:
    """Append the moments of every input of `layers` to `seen`."""
    hooks = []
    try:
        for name, (layer, _, _) in layers.items():
            hooks.append(layer.register_forward_pre_hook(partial(_record, name, seen), with_kwargs=True))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _record(name: str, seen: Seen, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Append the moments of the values that count in the input of layer `name` to `seen`."""
    moments = dispatch.moments(_counted(layer, args[0] if args else kwargs["input"], kwargs))
    if moments.count == 1:
        raise LeaveOut(f"it gives {name!r} one value per channel, which has no variance")
    if moments.count:
        seen.append((name, moments))


def _counted(layer: nn.Module, x: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """Return x, or the values (M, C) of it that a mask counts: an argument of our layers, or that of `bn.masked`."""
    special = _special(layer)
    if kwargs.get("mask") is not None or kwargs.get("lengths") is not None:
        mask = as_mask(x, kwargs.get("mask"), kwargs.get("lengths"))
    elif special is not None and special.mask is not None:
        mask = special.mask(x)
    else:
        return x
    return Packed(x, mask).rows(x)


def _special(layer: nn.Module) -> Special | None:
    """Return what is special about our layer, or about torch's, whose forward holds it then."""
    if isinstance(layer, FusedBatchNorm):
        return layer._special
    special = getattr(vars(layer).get("forward"), "special", None)
    return special if isinstance(special, Special) else None


def _check_finite(seen: Seen) -> None:
    """Raise `LeaveOut` if an input had a value that is not finite, which makes m2 not finite.

    Called after the batch, so that the CPU does not wait for the device within it.
    """
    for name, moments in seen:
        if not moments.m2.isfinite().all():
            raise LeaveOut(f"the input of {name!r} is not finite")
