"""Running statistics that are not the data's, and the proof that they are why eval is worse."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ...torch_private import AnyBatchNorm
from ..discrepancy import Discrepancy
from ..examination import Examination
from ..finding import Finding, Severity

LARGE = 0.5  # standard deviations
MATERIAL = 0.25  # where the proof shows that it matters
SMALL = 0.05
RECALIBRATE = "bn.recalibrate(model, batches)"


def stale_statistics(e: Examination) -> Iterator[Finding]:
    """Find layers whose running statistics are not those of the batches given.

    Test: per channel, mean and variance against the data's pooled over all batches (Alg. 2, line 10), in standard
    errors. The spread between examples gives the standard error (clusters.py), the running average's own noise adds to
    it (discrepancy.py), and the limit is Bonferroni's over all channels of the network (significance.py).

    Threshold: beyond the limit, and an effect. Training at a constant rate leaves statistics behind the weights, so
    significance alone is a note, from a twentieth of a standard deviation (`SMALL`). If recalibration mends the output
    (proof.py), a quarter (`MATERIAL`) is an error. If not, half a deviation (`LARGE`) is a warning. A layer that was
    never updated is an error.
    """
    proved = e.proof is not None and e.proof.helps
    material = {name: d.off(e.limit, MATERIAL if proved else LARGE) for name, d in e.discrepancies.items()}
    bad = [name for name, off in material.items() if off.any()]
    fresh = [name for name in bad if _as_made(e.layers[name])]
    used = [name for name in bad if name not in fresh]
    severity: Severity = "error" if proved else "warning"
    if fresh:
        yield _finding(e, fresh, material, "error", "they were never updated", "they are still 0 and 1")
    if used:
        why = (
            "they belong to other data or other weights. Averaged, merged, pruned and quantized copies keep old "
            "statistics; batches prepared unlike the training's look the same"
        )
        yield _finding(e, used, material, severity, why)
    small = {name: d.off(e.limit, SMALL) for name, d in e.discrepancies.items() if name not in bad}
    slight = [name for name, off in small.items() if off.any()]
    if slight:
        yield _finding(e, slight, small, "note", "they are a little behind the weights, or of a small sample")


def eval_against_training(e: Examination) -> Iterator[Finding]:
    """Prove that eval is worse because of the statistics, and name the first layer where training and eval part.

    Test: run up to four batches in eval mode, in eval mode after recalibration on a copy, and by batch statistics.
    Threshold, with a loss: the gain exceeds three standard errors of the difference paired by batch, and a tenth of the
    loss. Without: the distance of the outputs from training's, relative to their spread, more than doubles and is a
    tenth greater than after recalibration.
    """
    if e.proof is None or not e.proof.helps:
        return
    at = {size: [n for n, d in e.discrepancies.items() if d.off(e.limit, size).any()] for size in (MATERIAL, SMALL)}
    off = at[MATERIAL] or at[SMALL]
    if not off:
        return
    reason = "recalibration alone changes it, so the running statistics are the cause, and not the weights"
    evidence = f"{e.proof}; training and eval part at {off[0]}"
    yield Finding("eval against training", "error", (off[0],), evidence, reason, RECALIBRATE)


def _as_made(layer: AnyBatchNorm) -> bool:
    """Return True if the running statistics are those of a new layer."""
    return bool((layer.get_buffer("running_mean") == 0).all() and (layer.get_buffer("running_var") == 1).all())


def _finding(
    e: Examination, names: list[str], off: dict[str, Tensor], severity: Severity, why: str, more: str = ""
) -> Finding:
    ranked = sorted(names, key=lambda name: -_worst(e.discrepancies[name], off[name]))
    evidence = described(ranked[0], e.discrepancies[ranked[0]], off[ranked[0]]) + (f"; {more}" if more else "")
    remedy = RECALIBRATE
    if severity != "note" and e.proof is not None and e.proof.harms:
        evidence = f"{evidence}; {e.proof}"
        remedy = "none with these batches: recalibrating on them makes the loss worse. Give batches of the training set"
    return Finding("stale statistics", severity, tuple(ranked), evidence, why, remedy)


def _worst(discrepancy: Discrepancy, off: Tensor) -> float:
    return float(discrepancy.effect[off].nan_to_num(float("inf")).max())


def described(name: str, discrepancy: Discrepancy, off: Tensor) -> str:
    """Return the numbers of the channels that are off, in a line."""
    shift, ratio = float(discrepancy.shift[off].max()), discrepancy.ratio[off].exp()
    distance = float(discrepancy.distance[off].max())
    return (
        f"{name}: {int(off.sum())} of {len(off)} channels off, mean by up to {shift:.2g} std, "
        f"std {float(ratio.min()):.2g} to {float(ratio.max()):.2g} times the data's, {distance:.0f} standard errors"
    )
