"""Measure the inputs and outputs of every BN layer, in one pass over the batches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..algorithm2.estimator import Estimate
from ..algorithm2.observation import LeaveOut, Tracked, on_batch_statistics
from ..graph.batches import in_eval
from ..moments import Moments
from ..torch_private import AnyBatchNorm
from .clusters import Clusters
from .inputs import largest_input, run
from .padding import Tails, tails_of, tails_of_input

HELD = 4  # batches that are kept for the proof and the experiments, however many there are
_PART = 2**18  # values of a batch that are summed in double at once


@dataclass
class Measured:
    """Hold what was seen of one layer. No field grows with the number of batches.

    Arguments:
        estimate: the statistics of the input, as `recalibrate` estimates them.
        means: the mean of each example.
        variances: the mean square of each example about the mean of its batch.
        stds: the moments, over batches, of the batch's standard deviation.
        in_eval: the moments of the input while the network runs in eval mode.
        low, high: (C,), the smallest and the largest output in training.
        values: the fewest values per channel in a call.
        positions: the fewest values per channel of an example.
        dtype: the type of the input.
        tails: where the input is constant over the last positions.
    """

    estimate: Estimate
    means: Clusters
    variances: Clusters
    stds: Moments
    in_eval: Moments
    low: Tensor
    high: Tensor
    values: int = 2**62
    positions: int = 2**62
    dtype: torch.dtype = torch.float32
    tails: Tails = field(default_factory=Tails)

    @classmethod
    def nothing(cls, channels: int, device: torch.device) -> Measured:
        """Return the measurement before the first batch."""
        like = torch.zeros(channels, device=device)
        estimate = Estimate.empty(like)
        empty, none = Clusters.empty(like), estimate.moments
        wide = none.mean.new_full((channels,), math.inf)
        return cls(estimate, empty, empty, none, none, wide, -wide)

    @property
    def mean(self) -> Tensor:
        """Return the mean of all values, (C,)."""
        return self.estimate.moments.mean

    @property
    def var(self) -> Tensor:
        """Return the unbiased variance of all values, (C,)."""
        return self.estimate.moments.var(unbiased=True)

    @property
    def noise(self) -> float | None:
        """Return the spread of the standard deviation from batch to batch, relative: the median channel's."""
        if self.stds.count < 3:
            return None
        spread = self.stds.var(unbiased=True).sqrt() / self.stds.mean
        alive = spread[self.stds.mean > 0]
        return float(alive.median()) if len(alive) else None

    def add(self, sample: Sample) -> None:
        """Count one call."""
        batch = sample.moments()
        self.estimate = self.estimate.merge(Estimate.from_moments(batch))
        self.means = self.means.add(sample.means)
        self.variances = self.variances.add(sample.inner + (sample.means - batch.mean).square())
        self.stds = self.stds.merge(Moments.from_batch(batch.var(unbiased=True).sqrt()[None]))
        self.values = min(self.values, batch.count)
        self.positions = min(self.positions, sample.positions)
        self.dtype = sample.dtype
        self.tails = self.tails.merge(sample.tails)


class Sample(NamedTuple):
    """Hold the input of one call: mean and mean square of every example, (N, C), over `positions` values."""

    means: Tensor
    inner: Tensor
    positions: int
    dtype: torch.dtype
    tails: Tails

    def moments(self) -> Moments:
        """Return the moments of the whole batch."""
        mean = self.means.mean(0)
        m2 = (self.inner + (self.means - mean).square()).sum(0) * self.positions
        return Moments(len(self.means) * self.positions, mean, m2)


class Bad(NamedTuple):
    """Hold a batch that could not be measured: its number, the layer at fault and the reason."""

    batch: int
    layer: str
    reason: str


@dataclass
class Measurement:
    """Hold what all batches gave.

    Arguments:
        layers: by name, in the order of the first calls.
        held: the first batches.
        batches: how many batches there were.
        bad: up to `HELD` batches that were left out.
        left_out: how many were.
        tails: where the input of the network is constant.
    """

    layers: dict[str, Measured]
    held: list[Any] = field(default_factory=list)
    batches: int = 0
    bad: list[Bad] = field(default_factory=list)
    left_out: int = 0
    tails: Tails = field(default_factory=Tails)

    @property
    def counted(self) -> int:
        """Return how many batches count."""
        return self.batches - self.left_out


def measure(model: nn.Module, layers: dict[str, AnyBatchNorm], kept: set[str], batches: Iterable[Any]) -> Measurement:
    """Run every batch twice: normalizing by the batch, as in training, and in eval mode. Return what was seen.

    A batch counts for all layers or for none. It is left out if a layer gets one value per channel, or a value that is
    not finite.

    Arguments:
        model: a copy of the network.
        layers: its BN layers.
        kept: the names of those that normalize by their running statistics in training too.
        batches: any iterable.
    """
    measurement = Measurement({})
    found = {name: Measured.nothing(layer.num_features, _device(layer, model)) for name, layer in layers.items()}
    for index, batch in enumerate(batches):
        measurement.batches += 1
        try:
            seen = _in_training(model, layers, kept, found, batch)
        except _Stopped as stop:
            measurement.left_out += 1
            if len(measurement.bad) < HELD:
                measurement.bad.append(Bad(index, stop.layer, stop.reason))
            continue
        for name, sample in seen:
            measurement.layers.setdefault(name, found[name]).add(sample)
        _run_in_eval(model, layers, found, batch)
        measurement.tails = measurement.tails.merge(tails_of_input(largest_input(batch)))
        if len(measurement.held) < HELD:
            measurement.held.append(batch)
    return measurement


def tracked(layers: dict[str, AnyBatchNorm], kept: set[str]) -> dict[str, Tracked]:
    """Return the layers that normalize by the batch in training, with their running statistics."""
    found = {}
    for name, layer in layers.items():
        if layer.running_mean is not None and layer.running_var is not None and name not in kept:
            found[name] = Tracked(layer, layer.running_mean, layer.running_var)
    return found


class _Stopped(LeaveOut):
    """Stop the forward of a batch that cannot count."""

    def __init__(self, layer: str, reason: str) -> None:
        super().__init__(reason)
        self.layer, self.reason = layer, reason


def _in_training(
    model: nn.Module, layers: dict[str, AnyBatchNorm], kept: set[str], found: dict[str, Measured], batch: Any
) -> list[tuple[str, Sample]]:
    seen: list[tuple[str, Sample]] = []
    ranges: list[tuple[str, Tensor, Tensor]] = []

    def before(name: str, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs["input"]
        if x.numel() > x.shape[1]:
            seen.append((name, sample_of(x)))
        elif x.numel() and name not in kept:
            raise _Stopped(name, "it gets one value per channel")

    def after(name: str, _layer: nn.Module, _args: tuple[Any, ...], y: Tensor) -> None:
        if y.numel():
            axes = [axis for axis in range(y.dim()) if axis != 1]
            ranges.append((name, y.amin(axes), y.amax(axes)))

    with on_batch_statistics(model, tracked(layers, kept)), _hooked(layers, before, after):
        run(model, batch)
    for name, sample in seen:
        if not sample.inner.isfinite().all():
            raise _Stopped(name, "its input is not finite")
    for name, low, high in ranges:
        measured = found[name]
        measured.low, measured.high = torch.minimum(measured.low, low), torch.maximum(measured.high, high)
    return seen


def sample_of(x: Tensor) -> Sample:
    """Sum the values of each example, in double, and part by part so that the doubles stay in the cache."""
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    means, inner = [], []
    for part in x.detach().split(max(1, _PART // max(x[0].numel(), 1))):
        rows = part.reshape(*part.shape[:2], -1).to(wide)
        means.append(rows.mean(2))
        inner.append((rows - means[-1][:, :, None]).square_().mean(2))
    positions = x[0, 0].numel()
    return Sample(torch.cat(means), torch.cat(inner), positions, x.dtype, tails_of(x))


def _run_in_eval(model: nn.Module, layers: dict[str, AnyBatchNorm], found: dict[str, Measured], batch: Any) -> None:
    def before(name: str, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        measured = found[name]
        measured.in_eval = measured.in_eval.merge(Moments.from_batch(args[0] if args else kwargs["input"]))

    with in_eval(model), torch.no_grad(), torch.compiler.set_stance("force_eager"), _hooked(layers, before):
        run(model, batch)


@contextmanager
def _hooked(layers: dict[str, AnyBatchNorm], before: Any, after: Any = None) -> Iterator[None]:
    """Call `before(name, layer, args, kwargs)` and `after(name, layer, args, output)` around each call of a layer."""
    hooks = [layer.register_forward_pre_hook(partial(before, name), with_kwargs=True) for name, layer in layers.items()]
    if after is not None:
        hooks += [layer.register_forward_hook(partial(after, name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _device(layer: AnyBatchNorm, model: nn.Module) -> torch.device:
    tensors = [*layer.parameters(), *layer.buffers(), *model.parameters()]
    return tensors[0].device if tensors else torch.device("cpu")
