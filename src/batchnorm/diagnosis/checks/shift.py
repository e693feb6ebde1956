"""Evaluation data that is not distributed as the training data."""

from __future__ import annotations

from collections.abc import Iterator

from ..discrepancy import between
from ..examination import Examination, with_statistics
from ..finding import Finding
from ..proof import prove
from .stale import MATERIAL, described


def data_shift(e: Examination) -> Iterator[Finding]:
    """Find layers that see other statistics on the evaluation batches than on the training batches.

    Test: mean and variance per channel between the two sets, in standard errors of both, as in `stale statistics`.
    Threshold: beyond Bonferroni's limit, and off by a quarter of a standard deviation. The layers are in the order of
    the calls: the first one is nearest to the data. The evidence has what recalibrating on the evaluation data gives.
    """
    if e.evaluation is None:
        return
    off, found = {}, {}
    for name, measured in e.measured.items():
        other = e.evaluation.layers.get(name)
        if other is None:
            continue
        found[name] = between(measured, other, e.layers[name].eps)
        channels = found[name].off(e.limit, MATERIAL)
        if channels.any():
            off[name] = channels
    if not off:
        return
    name = next(iter(off))
    evidence = described(name, found[name], off[name]).replace("std ", "training std ", 1) + _gain(e)
    reason = "the statistics of training do not fit these data: another source, another preparation, another mix"
    remedy = "prepare both alike; or, where the domains do differ, bn.recalibrate(model, eval_batches) on a copy"
    yield Finding("data shift", "warning", tuple(off), evidence, reason, remedy)


def _gain(e: Examination) -> str:
    """Return what recalibrating on the evaluation batches gives there, as a part of the evidence."""
    if e.evaluation is None or not e.evaluation.held or not e.discrepancies:
        return ""
    measured = {name: e.evaluation.layers[name] for name in e.discrepancies if name in e.evaluation.layers}
    found = prove(e.recalibrated, with_statistics(e.model, measured), e.kept, e.evaluation.held, e.loss)
    if found is None:
        return ""
    if not found.losses:
        return f"; {found}"
    before, after, _ = (sum(values) / len(values) for values in zip(*found.losses, strict=True))
    return f"; loss there {before:.4g} with training's statistics, {after:.4g} with their own"
