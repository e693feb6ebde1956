"""`doctor`: examine a network with BN, and say what is wrong, where, and what mends it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ..algorithm2.progress import reported
from ..errors import BatchNormError
from ..graph.batches import check_batches, check_module
from ..graph.compare import copied
from ..statistics.synchronize import desynchronize
from ..torch_private import AnyBatchNorm, LazyNorm
from .checks.channels import dead_channels, gammas, not_finite
from .checks.composition import padding, sorted_batches
from .checks.counting import counted_twice
from .checks.freezing import half_frozen
from .checks.inference import batch_statistics, leak
from .checks.numbers import NO_EPS, eps, momentum, narrow_statistics, resolution
from .checks.ranks import ranks_differ
from .checks.shift import data_shift
from .checks.stale import eval_against_training, stale_statistics
from .checks.structure import dropout_before, last_layer, normalized_twice, redundant_bias, unfolded, weight_decay
from .checks.values import few_values
from .examination import Examination, Loss, held_in_eval
from .finding import SEVERITIES, Finding
from .measurement import measure
from .profile import profile_of
from .result import DoctorResult
from .row import DoctorOutcome, DoctorRow

# In the order in which a reader wants them within one severity: causes before what follows from them.
CHECKS: tuple[Callable[[Examination], Iterable[Finding]], ...] = (
    *(not_finite, batch_statistics, leak, eval_against_training, stale_statistics, momentum, eps, resolution),
    *(narrow_statistics, few_values, sorted_batches, padding, data_shift, counted_twice, half_frozen, ranks_differ),
    *(dead_channels, gammas, dropout_before, redundant_bias, normalized_twice, last_layer, weight_decay, unfolded),
)


def doctor(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    loss: Loss | None = None,
    eval_batches: Iterable[Any] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    progress: bool | Callable[[int, int | None], object] = False,
) -> DoctorResult:
    """Examine a network with BN layers: why is it fine in training and useless in eval, and what mends it?

    The model stays as it is: everything runs on copies, and the random numbers of the caller are left alone. Its modes
    count: give it in eval mode as it will serve, or in training mode as it trains.

    Each batch runs twice, normalizing by the batch as in training (Dropout off) and in eval mode. Memory does not grow
    with the number of batches; up to four are kept for experiments: eval before and after recalibration on a copy, one
    training step, a changed example, Dropout on. docs/doctor.md lists the checks.

    Under `torch.distributed` every process calls this.

    Arguments:
        model: any network with BN layers: torch's, Sync, ours, or a subclass.
        batches: batches of the training set, prepared and composed as in training: tensors, (input, target) tuples, or
            dicts, as `recalibrate` takes them. Ten batches of 32 are plenty for most networks.
        loss: called as loss(output, target), such as torch.nn.CrossEntropyLoss(). The target is the second part of a
            tuple, or else the whole batch. With it the proof is in units of the loss.
        eval_batches: batches of the evaluation set, to find a shift between the two.
        optimizer: the optimizer of the training. Its steps are compared with the batches that the layers counted, and
            its weight decay is looked at. SGD does not count: write its steps into `optimizer.param_groups[0]["step"]`.
        progress: True shows the batches on stderr. A function is called as `progress(done, total)`.

    Returns:
        The findings, worst first, and one row per BN layer. It prints as a table and has `to_html(path)`.

    Raises:
        BatchNormError: `model` is no network or has no BN layer, or it or the loss does not run on a batch.

    Example:
        >>> import torch
        >>> import batchnorm as bn
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(4))
        >>> batches = [torch.randn(64, 4) * 3 + 5 for _ in range(8)]
        >>> [finding.check for finding in bn.doctor(model, batches).findings if finding.severity == "error"]
        ['eval against training', 'stale statistics']
        >>> _ = bn.recalibrate(model, batches)
        >>> bn.doctor(model, batches).healthy
        True
    """
    check_module(model)
    check_batches(batches)
    given = _with_a_name(_unwrapped(model))
    _layers(given)
    working = copied(given)
    layers = _layers(working)
    desynchronize(working)
    for layer in layers.values():
        layer.eps = max(layer.eps, NO_EPS)
    held = held_in_eval(working) & layers.keys()
    kept = held | {name for name, layer in layers.items() if working.training and not layer.training}
    training = measure(working, layers, kept, reported(batches, progress, step="doctor"))
    if not training.batches:
        raise BatchNormError("doctor got no batch. Give several batches of the training set")
    evaluation = None
    if eval_batches is not None:
        check_batches(eval_batches)
        evaluation = measure(working, layers, kept, reported(eval_batches, progress, step="doctor, evaluation"))
    examination = Examination(given, working, layers, held, kept, training, evaluation, loss, optimizer)
    findings = [finding for check in CHECKS for finding in check(examination)]
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    rows = tuple(_row(examination, name, findings) for name in layers)
    return DoctorResult(model, tuple(findings), rows, training.batches, tuple(examination.unexamined))


def _unwrapped(model: nn.Module) -> nn.Module:
    """Return the network inside DataParallel, DistributedDataParallel and torch.compile."""
    while isinstance(model, DataParallel | DistributedDataParallel) or isinstance(
        model._modules.get("_orig_mod"), nn.Module
    ):
        inner = model._modules.get("_orig_mod", model._modules.get("module"))
        assert isinstance(inner, nn.Module)
        model = inner
    return model


def _with_a_name(model: nn.Module) -> nn.Module:
    """Return the network. A bare BN layer has no name in itself: return a network that holds it, named by its class."""
    if not isinstance(model, AnyBatchNorm):
        return model
    name = type(model).__name__
    alone = type(name, (nn.Sequential,), {})()  # messages name the class of the network
    alone.add_module(name, model)
    alone.training = model.training
    return alone


def _layers(model: nn.Module) -> dict[str, AnyBatchNorm]:
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, AnyBatchNorm)}
    if not layers:
        raise BatchNormError(f"{type(model).__name__} has no BatchNorm layer: nothing to examine")
    lazy = [name for name, layer in layers.items() if isinstance(layer, LazyNorm)]
    if lazy:
        raise BatchNormError(f"{lazy[0]!r} is a lazy layer without a shape yet; run one batch through the model first")
    return layers


def _row(e: Examination, name: str, findings: list[Finding]) -> DoctorRow:
    mine = [finding for finding in findings if name in finding.layers]
    outcome: DoctorOutcome = mine[0].severity if mine else "healthy"
    reason = ", ".join(dict.fromkeys(finding.check for finding in mine))
    measured = e.measured.get(name)
    if measured is None:
        return DoctorRow(name, outcome, reason or "not reached by any batch")
    profile = profile_of(e.layers[name], measured)
    found = e.discrepancies.get(name)
    if found is None:
        return DoctorRow(name, outcome, reason, measured.values, noise=measured.noise, profile=profile)
    ratio = found.ratio.exp()
    return DoctorRow(
        *(name, outcome, reason, measured.values),
        mean_shift=float(found.shift.max()),
        std_low=float(ratio.min()),
        std_high=float(ratio.max()),
        distance=float(found.distance.max()),
        noise=measured.noise,
        gap=profile.gap,
        profile=profile,
    )
