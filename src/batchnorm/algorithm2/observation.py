"""Run batches through a network whose BN layers normalize by the batch, and record the inputs of those layers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..graph.batches import in_eval
from ..kernels import dispatch
from ..moments import Moments
from .estimator import Estimate


class Tracked(NamedTuple):
    """Hold a BN layer and its running statistics."""

    layer: _BatchNorm
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

    Without running statistics every kind of BN layer normalizes by the batch, and tracks nothing. SyncBatchNorm does
    not wait for other processes.
    """
    try:
        for layer, _, _ in layers.values():
            layer.running_mean = layer.running_var = None
        with in_eval(model), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for layer, mean, var in layers.values():
            layer.running_mean, layer.running_var = mean, var


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


def _record(name: str, seen: Seen, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Append the moments of the input of layer `name` to `seen`."""
    moments = dispatch.moments(args[0] if args else kwargs["input"])
    if moments.count == 1:
        raise LeaveOut(f"it gives {name!r} one value per channel, which has no variance")
    if moments.count:
        seen.append((name, moments))


def _check_finite(seen: Seen) -> None:
    """Raise `LeaveOut` if an input had a value that is not finite, which makes m2 not finite.

    Called after the batch, so that the CPU waits for the device once.
    """
    for name, moments in seen:
        if not moments.m2.isfinite().all():
            raise LeaveOut(f"the input of {name!r} is not finite")
