"""Algorithm 2, line 10: population statistics, re-estimated in one pass into the network's own buffers."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, reduce
from operator import length_hint
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _LazyNormBase
from torch.nn.parallel import DistributedDataParallel

from ..errors import BatchNormError, first_few
from ..graph.batches import check_batches, device_of, in_eval, run_batch
from ..moments import Moments
from .freeze import statistics_frozen
from .results import format_table

Estimator = Literal["pooled", "paper"]


@dataclass(frozen=True)
class RecalibrateRow:
    """How far the statistics of one BN went, in units that compare across layers.

    Arguments:
        layer: its name in the network.
        values: values per channel behind the new statistics; 0 if they are the old ones.
        mean_shift: the largest |new mean - old mean| / sqrt(old var + eps) of its channels.
        std_low, std_high: the smallest and the largest sqrt((new var + eps) / (old var + eps)).
        note: why the layer kept its statistics.
    """

    layer: str
    values: int = 0
    mean_shift: float | None = None
    std_low: float | None = None
    std_high: float | None = None
    note: str = ""


@dataclass(frozen=True)
class RecalibrateResult:
    """What `recalibrate` did: the model it was given, a row per BN, and the batches that could not be used."""

    model: nn.Module
    rows: tuple[RecalibrateRow, ...]
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        header = ("layer", "values", "mean shift (old std)", "std ratio, min", "max", "note")
        cells = [(r.layer, r.values, r.mean_shift, r.std_low, r.std_high, r.note) for r in self.rows]
        return "\n".join([format_table(header, cells), *self.left_out])


def recalibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    estimator: Estimator = "pooled",
    forward: Callable[[nn.Module, Any], object] | None = None,
    progress: Callable[[int, int | None], object] | None = None,
) -> RecalibrateResult:
    """Replace the running statistics of every BN by those of the data, in place (Alg. 2, line 10).

    "pooled": mean and unbiased variance of all values a layer is given, merged by Chan's formula.
    "paper": E[x] = mean of mu_B, Var[x] = mean of m/(m-1) var_B, every batch counting alike, with its own m.

    While it runs the BN layers normalise by the batch, as in training, and all else is in eval: Dropout stays off
    (torch's `swa_utils.update_bn` switches it on). Parameters are untouched, and modes, momentum and hooks are
    restored whatever happens. The buffers are written once, at the end: an exception leaves the old ones whole.
    Layers that are frozen, or in eval inside a network in training mode, keep theirs.

    A batch that gives a layer a value that is not finite, or a single value per channel, is left out with a warning.
    `num_batches_tracked` becomes the number of batches that counted.

    Under `torch.distributed` every process calls this with its own batches, any number of them: counts, means and
    spreads are merged (timm's `distribute_bn` loses the spread between the means), and all end with the same
    numbers, or, if one process fails, all raise.

    Arguments:
        model: any network with BN layers: torch's, Sync, or a subclass of either. It is changed in place.
        batches: iterable of tensors, of (input, ...) tuples whose first element is the input, or of dicts of keyword
            arguments. Inputs are moved to the device of the model. Several batches of the training set, of the size
            trained with.
        estimator: "pooled" or "paper".
        forward: called as `forward(model, batch)` for any other kind of batch; the batch is not moved.
        progress: called as `progress(done, total)` after each batch, `total` being None where it is unknown. By
            default a line on stderr, if that is a terminal.

    Returns:
        A row per BN, which prints as a table of how far its statistics moved.

    Raises:
        BatchNormError: an unknown estimator; no BN to recalibrate; a batch that the network does not run on; no batch
            that can be used; another process failed.
    """
    # The wrapper broadcasts buffers before a forward, and would wait for ever for a process that has no batch.
    bare = model.module if isinstance(model, DistributedDataParallel) else model
    try:
        if estimator not in get_args(Estimator):
            raise BatchNormError(f"estimator must be 'pooled' or 'paper'; got {estimator!r}")
        check_batches(batches)
        layers, notes = _choose(bare)
        estimates = {name: _Estimate.empty(layer) for name, layer in layers.items()}
        left_out = _observe(bare, layers, estimates, _shown(batches, progress), forward or run_batch)
    except Exception:
        _tell_processes(bare, failed=True)
        raise
    estimates = _merge_across_processes(bare, estimates)
    if not any(estimate.calls for estimate in estimates.values()):
        why = " ".join(left_out or ["There was none."])
        raise BatchNormError(
            f"recalibrate got no batch it could use. {why} Give finite values, more than one per channel and layer."
        )
    return RecalibrateResult(model, tuple(_write(layers, estimates, notes, estimator)), tuple(left_out))


@dataclass(frozen=True)
class _Estimate:
    """What `calls` batches say of one layer's input, in the form of both estimators; merges across processes too."""

    calls: int
    moments: Moments
    mean_of_means: Tensor
    mean_of_vars: Tensor

    @classmethod
    def empty(cls, layer: _BatchNorm) -> _Estimate:
        assert layer.running_mean is not None
        zeros = torch.zeros_like(layer.running_mean, dtype=_wide(layer.running_mean.device))
        return cls(0, Moments(0, zeros, zeros), zeros, zeros)

    @classmethod
    def of(cls, batch: Moments) -> _Estimate:
        return cls(1, batch, batch.mean, batch.var(unbiased=True))

    def merge(self, other: _Estimate) -> _Estimate:
        calls = self.calls + other.calls
        share = other.calls / max(calls, 1)
        return _Estimate(
            calls,
            self.moments.merge(other.moments),
            torch.lerp(self.mean_of_means, other.mean_of_means, share),
            torch.lerp(self.mean_of_vars, other.mean_of_vars, share),
        )

    def mean_and_var(self, estimator: Estimator) -> tuple[Tensor, Tensor]:
        if estimator == "paper":
            return self.mean_of_means, self.mean_of_vars
        return self.moments.mean, self.moments.var(unbiased=True)

    def pack(self) -> Tensor:
        counts = self.moments.mean.new_tensor([self.calls, self.moments.count])
        return torch.cat([counts, self.moments.mean, self.moments.m2, self.mean_of_means, self.mean_of_vars])

    def unpack(self, packed: Tensor) -> _Estimate:
        """The estimate that another process packed for the same layer."""
        calls, count = (int(n) for n in packed[:2])
        mean, m2, mean_of_means, mean_of_vars = packed[2:].to(self.mean_of_means.device).chunk(4)
        return _Estimate(calls, Moments(count, mean, m2), mean_of_means, mean_of_vars)


class _LeaveOut(BaseException):
    """Why the batch that is running must not count. No Exception: those of a network are errors of its own."""


def _choose(model: nn.Module) -> tuple[dict[str, _BatchNorm], dict[str, str]]:
    """The layers to recalibrate, and for every BN of the network, in order, why it is none of them ("" if it is)."""
    layers: dict[str, _BatchNorm] = {}
    notes: dict[str, str] = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, _BatchNorm):
            continue
        if isinstance(layer, _LazyNormBase):
            raise BatchNormError(f"{name!r} is a lazy layer without a shape yet; run one batch through the model first")
        notes[name] = _why_kept(model, layer)
        if not notes[name]:
            layers[name] = layer
    if layers:
        return layers, notes
    if not notes:
        raise BatchNormError(f"{type(model).__name__} has no BatchNorm layer: nothing to recalibrate")
    kept = first_few([f"{name!r}: {note}" for name, note in notes.items()])
    raise BatchNormError(
        f"nothing to recalibrate, every BatchNorm layer keeps what it has ({kept}). "
        "Call bn.unfreeze(model), or model.eval() to recalibrate layers that are in eval."
    )


def _why_kept(model: nn.Module, layer: _BatchNorm) -> str:
    if layer.running_mean is None or layer.running_var is None:
        return "has no running statistics"
    if statistics_frozen(layer):
        return "frozen"
    if model.training and not layer.training:
        return "in eval, the network in training mode"
    return ""


def _observe(
    model: nn.Module,
    layers: dict[str, _BatchNorm],
    estimates: dict[str, _Estimate],
    batches: Iterable[Any],
    forward: Callable[[nn.Module, Any], object],
) -> list[str]:
    """Run the batches and merge what each layer saw into `estimates`; a batch counts for all layers or for none."""
    seen: list[tuple[str, Moments]] = []
    left_out = []
    with _on_batch_statistics(model, layers, seen):
        for index, batch in enumerate(batches):
            seen.clear()
            try:
                forward(model, batch)
                _check_finite(seen)
            except _LeaveOut as reason:
                left_out.append(f"Batch {index} was left out: {reason}.")
                warnings.warn(left_out[-1], RuntimeWarning, stacklevel=4)
                continue
            for name, moments in seen:
                estimates[name] = estimates[name].merge(_Estimate.of(moments))
    return left_out


@contextmanager
def _on_batch_statistics(
    model: nn.Module, layers: dict[str, _BatchNorm], seen: list[tuple[str, Moments]]
) -> Iterator[None]:
    """All of the network in eval, its BN `layers` without running statistics, so that they normalise by the batch.

    Nothing is tracked this way, by any kind of BN, and SyncBatchNorm does not wait for other processes.
    """
    statistics = [(layer, layer.running_mean, layer.running_var) for layer in layers.values()]
    hooks = []
    try:
        for name, layer in layers.items():
            layer.running_mean = layer.running_var = None
            hooks.append(layer.register_forward_pre_hook(partial(_see, name, seen), with_kwargs=True))
        with in_eval(model), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer, mean, var in statistics:
            layer.running_mean, layer.running_var = mean, var


def _see(
    name: str, seen: list[tuple[str, Moments]], _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    moments = Moments.from_batch(args[0] if args else kwargs["input"])
    if moments.count == 1:
        raise _LeaveOut(f"it gives {name!r} one value per channel, which has no variance")
    if moments.count:
        seen.append((name, moments))


def _check_finite(seen: list[tuple[str, Moments]]) -> None:
    # After the batch, so that a device is waited for once; m2 is not finite if a value is not.
    for name, moments in seen:
        if not moments.m2.isfinite().all():
            raise _LeaveOut(f"the input of {name!r} is not finite")


def _shown(batches: Iterable[Any], progress: Callable[[int, int | None], object] | None) -> Iterator[Any]:
    """The batches, with `progress` told after each."""
    total = length_hint(batches, 0) or None
    on_terminal = progress is None and sys.stderr.isatty() and not (_processes() and dist.get_rank())
    for done, batch in enumerate(batches, 1):
        yield batch
        if progress is not None:
            progress(done, total)
        elif on_terminal:
            print(
                f"\rrecalibrate: batch {done}" + (f" of {total}" if total else ""), end="", file=sys.stderr, flush=True
            )
    if on_terminal:
        print(file=sys.stderr)


def _merge_across_processes(model: nn.Module, estimates: dict[str, _Estimate]) -> dict[str, _Estimate]:
    """The estimates of all processes together, merged in the order of ranks, so that all get the same bits."""
    packed = [estimate.pack() for estimate in estimates.values()]
    sizes = [len(part) for part in packed]
    _tell_processes(model, size=sum(sizes))
    if not _processes():
        return estimates
    ranks = [theirs.split(sizes) for theirs in _gather(model, torch.cat(packed))]
    return {
        name: reduce(_Estimate.merge, (own.unpack(parts[i]) for parts in ranks))
        for i, (name, own) in enumerate(estimates.items())
    }


def _tell_processes(model: nn.Module, *, size: int = 0, failed: bool = False) -> None:
    """Tell the other processes what is to come, or that nothing is, since they would wait for it.

    Raises:
        BatchNormError: another process failed, or has other layers; not raised where this one failed.
    """
    if not _processes():
        return
    for rank, (their_size, they_failed) in enumerate(_gather(model, torch.tensor([size, failed]))):
        if they_failed and not failed:
            raise BatchNormError(
                f"recalibrate failed in the process of rank {rank}, see its error; nothing changed here"
            )
        if their_size != size and not failed:
            raise BatchNormError(f"the process of rank {rank} recalibrates other layers; give all the same network")


def _gather(model: nn.Module, mine: Tensor) -> list[Tensor]:
    mine = mine.to("cpu" if dist.get_backend() == "gloo" else device_of(model))
    everyone = [torch.empty_like(mine) for _ in range(_processes())]
    dist.all_gather(everyone, mine)
    return everyone


def _processes() -> int:
    """How many processes merge; 0 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 0


def _write(
    layers: dict[str, _BatchNorm], estimates: dict[str, _Estimate], notes: dict[str, str], estimator: Estimator
) -> list[RecalibrateRow]:
    """Write the new statistics, all of them known before the first is written; a row per BN of the network."""
    new = {name: estimate.mean_and_var(estimator) for name, estimate in estimates.items() if estimate.calls}
    return [
        _replace(name, layers[name], estimates[name], *new[name])
        if name in new
        else RecalibrateRow(name, note=note or "not reached by any batch")
        for name, note in notes.items()
    ]


@torch.no_grad()
def _replace(name: str, layer: _BatchNorm, estimate: _Estimate, mean: Tensor, var: Tensor) -> RecalibrateRow:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    old_mean = layer.running_mean.to(mean.dtype)
    old_std = (layer.running_var.to(var.dtype) + layer.eps).sqrt()
    ratio = (var + layer.eps).sqrt() / old_std
    shift = (mean - old_mean).abs() / old_std
    layer.running_mean.copy_(mean)
    layer.running_var.copy_(var)
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.fill_(estimate.calls)
    return RecalibrateRow(name, estimate.moments.count, float(shift.max()), float(ratio.min()), float(ratio.max()))


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
