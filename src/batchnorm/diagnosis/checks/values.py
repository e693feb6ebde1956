"""Too few values per channel for an estimate."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt

import torch.distributed as dist
from torch import nn

from ...errors import BatchNormError
from ...layers import FusedBatchNorm
from ..examination import Examination
from ..finding import Finding

NOISY = 0.3  # relative standard error of a batch's standard deviation: below 7 values per channel


def few_values(e: Examination) -> Iterator[Finding]:
    """Find layers that estimate mean and variance from very few values.

    Test: the number of values per channel of the smallest call, n, and the noise that it makes. The standard deviation
    of n independent Gaussian values has the relative standard error 1 / sqrt(2 (n - 1)). Positions of one image are not
    independent, so the spread from batch to batch is measured too. Layers that processes share count the values of all.

    Threshold: one value is an error, because training raises there. A noise above 30 % (`NOISY`), which is below 7
    values, is a warning; a measured noise above it is a note.
    """
    yield from _one_value(e)
    counts = {name: _values(e, name) for name in e.measured if name not in e.kept}
    few = {name: n for name, n in counts.items() if _noise(n) > NOISY}
    if few:
        worst = min(few, key=lambda name: few[name])
        noise = e.measured[worst].noise
        seen = f", measured {noise:.0%}" if noise is not None else ""
        evidence = (
            f"{worst}: {few[worst]} values per channel, so the standard deviation is off by {_noise(few[worst]):.0%}"
        )
        reason = "each training step normalizes by that noise, and eval does not"
        yield Finding("few values", "warning", tuple(few), evidence + seen + _processes(e, worst), reason, _remedy())
    noisy = {
        name: measured.noise
        for name, measured in e.measured.items()
        if name not in few and name not in e.kept and measured.noise is not None
        if measured.noise > NOISY * sqrt(_sharing(e, name))
    }
    if noisy:
        worst = max(noisy, key=lambda name: noisy[name])
        evidence = f"{worst}: the standard deviation varies by {noisy[worst]:.0%} from batch to batch"
        reason = f"{counts[worst]} values per channel are few where neighbors are alike"
        yield Finding("few values", "note", tuple(noisy), evidence, reason, _remedy())


def _one_value(e: Examination) -> Iterator[Finding]:
    single = [bad for bad in e.training.bad if "one value" in bad.reason]
    if single and not e.training.counted and _sharing(e, single[0].layer) > 1:
        raise BatchNormError(f"{single[0].layer!r} gets one value per channel in this process; give larger batches")
    single = [bad for bad in single if _sharing(e, bad.layer) == 1]
    if single:
        names = tuple(dict.fromkeys(bad.layer for bad in single))
        evidence = f"batch {single[0].batch} (the first is 0) gives {names[0]} one value per channel"
        reason = "one value has no variance: torch raises in training"
        remedy = "give larger batches: drop_last=True drops a last batch of one; or remove BN behind global pooling"
        yield Finding("few values", "error", names, evidence, reason, remedy)


def _values(e: Examination, name: str) -> int:
    """Return the fewest values per channel that are normalized together."""
    measured, virtual = e.measured[name], getattr(e.layers[name], "virtual_batch_size", None)
    if virtual is not None:
        return min(measured.values, virtual * measured.positions)
    return measured.values * _sharing(e, name)


def _noise(values: int) -> float:
    return 1 / sqrt(2 * max(values - 1, 1))


def _processes(e: Examination, name: str) -> str:
    if dist.is_available() and dist.is_initialized() and _sharing(e, name) == 1:
        return f"; each of {dist.get_world_size()} processes normalizes by its own"
    return ""


def _sharing(e: Examination, name: str) -> int:
    """Return how many processes share the statistics of a layer, as it was given."""
    layer = e.given.get_submodule(name)
    if not (dist.is_available() and dist.is_initialized()):
        return 1
    special = layer._special if isinstance(layer, FusedBatchNorm) else getattr(vars(layer).get("forward"), "special", 0)
    meeting = getattr(special, "meeting", None)
    if meeting is not None:
        return dist.get_world_size(meeting.group)
    return dist.get_world_size(layer.process_group) if isinstance(layer, nn.SyncBatchNorm) else 1


def _remedy() -> str:
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return "bn.synchronize(model), or larger batches"
    return "larger batches; or bn.freeze(model, affine=False) when you fine-tune"
