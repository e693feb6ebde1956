"""Re-estimate population statistics into the running statistics of a network (Algorithm 2, line 10)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import BatchNormError, first_few
from ..escape import printable
from ..graph.batches import check_batches, check_module, run_batch
from ..torch_private import AnyBatchNorm, LazyNorm
from .choices import Estimator
from .estimator import Estimate
from .freeze import statistics_frozen
from .observation import Tracked, observe
from .processes import merge_across_processes, report_failure
from .progress import reported
from .results import count, format_table, shown

RecalibrateOutcome = Literal["recalibrated", "kept"]


@dataclass(frozen=True)
class RecalibrateRow:
    """Tell how far the statistics of one BN layer moved, in units that compare across layers.

    Arguments:
        name: the name of the layer in the network.
        outcome: "recalibrated" or "kept".
        reason: why the layer kept its statistics, or "".
        values: the number of values per channel behind the new statistics; 0 if the old ones were kept.
        mean_shift: the largest |new mean - old mean| / sqrt(old var + eps) of all channels.
        std_low: the smallest sqrt((new var + eps) / (old var + eps)) of all channels.
        std_high: the largest of the same ratio.
    """

    name: str
    outcome: RecalibrateOutcome
    reason: str = ""
    values: int = 0
    mean_shift: float | None = None
    std_low: float | None = None
    std_high: float | None = None


@dataclass(frozen=True)
class RecalibrateResult:
    """Hold the model, one row per BN layer, and the batches that were left out.

    Arguments:
        model: the model that was given.
        rows: one row per BN layer, in the order of `named_modules`.
        left_out: one sentence per batch that was left out.

    Example:
        >>> import torch
        >>> import batchnorm as bn
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(1), torch.nn.BatchNorm1d(1, track_running_stats=False))
        >>> result = bn.recalibrate(model, [torch.tensor([[1.0], [3.0]])])
        >>> result.recalibrated, result.kept
        (1, 1)
        >>> [(row.name, row.outcome, row.reason) for row in result.rows]
        [('0', 'recalibrated', ''), ('1', 'kept', 'has no running statistics')]
    """

    model: nn.Module
    rows: tuple[RecalibrateRow, ...]
    left_out: tuple[str, ...]

    @property
    def recalibrated(self) -> int:
        """Return the number of layers with new statistics."""
        return count(self.rows, "recalibrated")

    @property
    def kept(self) -> int:
        """Return the number of layers that kept their statistics."""
        return count(self.rows, "kept")

    def __str__(self) -> str:
        header = ("name", "outcome", "values", "mean shift (old std)", "std ratio, min", "max", "reason")
        cells = [(shown(r.name), r.outcome, r.values, r.mean_shift, r.std_low, r.std_high, r.reason) for r in self.rows]
        counts = f"{self.recalibrated} recalibrated, {self.kept} kept"
        return "\n".join([format_table(header, cells), counts, *map(printable, self.left_out)])


def recalibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    estimator: Estimator = "pooled",
    forward: Callable[[nn.Module, Any], object] | None = None,
    progress: bool | Callable[[int, int | None], object] = False,
) -> RecalibrateResult:
    """Replace the running statistics of every BN layer by those of the data, in place (Alg. 2, line 10).

    "pooled": mean and unbiased variance of all values of a layer's input, merged by Chan's formula.
    "paper": E[x] = mean of mu_B and Var[x] = mean of m/(m-1) var_B. Each batch counts alike, with its own m.

    The BN layers normalize by the batch, as in training. All other layers are in eval mode, so Dropout stays off;
    torch's `swa_utils.update_bn` switches it on. Parameters do not change. Modes, momentum and hooks are restored,
    also after an exception. The statistics are written at the end, so an exception leaves the old ones whole.

    A layer keeps its statistics if it is frozen, or if it is in eval mode and the network in training mode. A batch
    is left out with a warning if it gives a layer a value that is not finite, or one value per channel.
    `num_batches_tracked` becomes the number of batches that counted. Padding that `bn.masked` masks in `forward`, or
    that the network's own layers get as `mask` or `lengths`, does not count.

    Under `torch.distributed` every process calls this with its own batches, any number of them. Counts, means and
    spreads are merged, and all processes end with the same numbers. If one fails, all raise. (timm's `distribute_bn`
    loses the spread between the means.)

    Arguments:
        model: any network with BN layers: torch's, Sync, or a subclass of either.
        batches: an iterable of tensors, of (input, ...) tuples whose first element is the input, or of dicts of
            keyword arguments. In a tuple the input may be a list of tensors, as torchvision's detection networks take.
            Inputs are moved to the device of the model. Give several batches of the training set, of the size used in
            training.
        estimator: "pooled" or "paper".
        forward: called as `forward(model, batch)` for any other kind of batch. It must move the batch itself.
        progress: True shows the batches on stderr. A function is called as `progress(done, total)` after each batch,
            with None for an unknown total.

    Returns:
        The model and one row per BN layer. It prints as a table of how far the statistics moved.

    Raises:
        BatchNormError: `model` is no network, the estimator is unknown, or there is no BN layer to recalibrate. Or the
            network does not run on a batch, or no batch could be used.
        PeerError: another process failed.

    Example:
        >>> import torch
        >>> import batchnorm as bn
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(2))
        >>> batches = [torch.tensor([[1.0, 0.0], [3.0, 4.0]]), torch.tensor([[5.0, 8.0], [7.0, 12.0]])]
        >>> print(bn.recalibrate(model, batches))
        name  outcome       values  mean shift (old std)  std ratio, min    max  reason
        ----  ------------  ------  --------------------  --------------  -----  ------
        0     recalibrated       4                     6           2.582  5.164
        1 recalibrated, 0 kept
        >>> model[0].running_mean
        tensor([4., 6.])
    """
    check_module(model)
    # DistributedDataParallel broadcasts buffers before a forward. A process without batches would keep it waiting.
    bare = model.module if isinstance(model, DistributedDataParallel) else model
    try:
        if estimator not in get_args(Estimator):
            raise BatchNormError(f"estimator must be 'pooled' or 'paper'; got {estimator!r}")
        check_batches(batches)
        layers, reasons = _choose(bare)
        estimates, left_out = observe(bare, layers, reported(batches, progress), forward or run_batch)
    except Exception:
        report_failure(bare)
        raise
    estimates = merge_across_processes(bare, estimates)
    if not any(estimate.calls for estimate in estimates.values()):
        why = " ".join(left_out or ["There was none."])
        raise BatchNormError(
            f"recalibrate got no batch it could use. {why} Give finite values, more than one per channel and layer."
        )
    return RecalibrateResult(model, tuple(_write(layers, estimates, reasons, estimator)), tuple(left_out))


def _choose(model: nn.Module) -> tuple[dict[str, Tracked], dict[str, str]]:
    """Return the layers to recalibrate, and for every BN layer the reason to keep it ("" if there is none)."""
    layers: dict[str, Tracked] = {}
    reasons: dict[str, str] = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, AnyBatchNorm):
            continue
        if isinstance(layer, LazyNorm):
            raise BatchNormError(f"{name!r} is a lazy layer without a shape yet; run one batch through the model first")
        mean, var = layer.running_mean, layer.running_var
        if mean is None or var is None:
            reasons[name] = "has no running statistics"
        else:
            reasons[name] = _why_kept(model, layer)
            if not reasons[name]:
                layers[name] = Tracked(layer, mean, var)
    if not layers:
        raise _nothing_to_recalibrate(model, reasons)
    return layers, reasons


def _why_kept(model: nn.Module, layer: AnyBatchNorm) -> str:
    if statistics_frozen(layer):
        return "frozen"
    if model.training and not layer.training:
        return "in eval, the network in training mode"
    return ""


def _nothing_to_recalibrate(model: nn.Module, reasons: dict[str, str]) -> BatchNormError:
    if not reasons:
        return BatchNormError(f"{type(model).__name__} has no BatchNorm layer: nothing to recalibrate")
    kept = first_few([f"{name!r}: {reason}" for name, reason in reasons.items()])
    return BatchNormError(
        f"nothing to recalibrate, every BatchNorm layer keeps what it has ({kept}). "
        "Call bn.unfreeze(model), or model.eval() to recalibrate layers that are in eval."
    )


def _write(
    layers: dict[str, Tracked], estimates: dict[str, Estimate], reasons: dict[str, str], estimator: Estimator
) -> list[RecalibrateRow]:
    """Write the new statistics and return one row per BN layer. Compute all before the first is written."""
    new = {name: estimate.mean_and_var(estimator) for name, estimate in estimates.items() if estimate.calls}
    return [
        _replace(name, layers[name], estimates[name], *new[name])
        if name in new
        else RecalibrateRow(name, "kept", reason or "not reached by any batch")
        for name, reason in reasons.items()
    ]


@torch.no_grad()
def _replace(name: str, tracked: Tracked, estimate: Estimate, mean: Tensor, var: Tensor) -> RecalibrateRow:
    """Write `mean` and `var` into the layer and return its row."""
    layer, running_mean, running_var = tracked
    old_mean = running_mean.to(mean.dtype)
    old_std = (running_var.to(var.dtype) + layer.eps).sqrt()
    ratio = (var + layer.eps).sqrt() / old_std
    shift = (mean - old_mean).abs() / old_std
    running_mean.copy_(mean)
    running_var.copy_(var)
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.fill_(estimate.calls)
    return RecalibrateRow(
        name,
        "recalibrated",
        values=estimate.moments.count,
        mean_shift=float(shift.max()),
        std_low=float(ratio.min()),
        std_high=float(ratio.max()),
    )
