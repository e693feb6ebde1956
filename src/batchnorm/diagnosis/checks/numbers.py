"""Momentum, eps and number formats that lose the statistics."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt

import torch

from ...torch_private import AnyBatchNorm
from ..examination import Examination
from ..finding import Finding, Severity
from .stale import RECALIBRATE, SMALL

LAST_BATCH = 0.5  # momentum above it: over 58 % of a single batch's noise stays in the running statistics
LEFT = 0.05  # share of the initial 0 and 1 in the running statistics
SWAMPED = 0.99  # share of eps under the root: the output's standard deviation is a tenth of gamma
NOTICEABLE = 0.1
NO_EPS = torch.finfo(torch.float32).tiny  # of the copy in place of 0, which torch refuses in training
LARGEST_USUAL = 1e-3  # eps: torch's default is 1e-5, that of Keras and of Inception 1e-3


def momentum(e: Examination) -> Iterator[Finding]:
    """Find a momentum that keeps the last batch alone, never moves, or forgets the initial values too slowly.

    Test: with momentum m the running average has m / (2 - m) of the variance of one batch, and (1 - m)^steps of the
    values that it started from. Threshold: m above 0.5 keeps over half of the noise of the last batch. Frameworks that
    weigh the old value call 0.9 and 0.99 what is 0.1 and 0.01 here. Over 5 % of the initial values is a finding where
    the running statistics are in fact off, and toward 0 and 1.
    """
    moving = {name: layer for name, layer in e.layers.items() if _moves(layer) and name not in e.kept}
    last = {n: float(layer.momentum or 0) for n, layer in moving.items() if (layer.momentum or 0) > LAST_BATCH}
    if last:
        name, value = max(last.items(), key=lambda item: item[1])
        noise = sqrt(value / (2 - value)) if value < 2 else 1.0
        evidence = f"{name}: momentum {value:g} keeps {noise:.0%} of the noise of the last batch"
        reason = "momentum weighs the new batch here; Keras, Flax and Caffe weigh the old value"
        remedy = f"momentum={1 - value:.3g} if {value:g} is another framework's, or 0.1; then {RECALIBRATE}"
        yield Finding("momentum", "warning", tuple(last), evidence, reason, remedy)
    still = tuple(name for name, layer in moving.items() if not float(layer.momentum or 0) > 0)
    if still:
        evidence = f"{still[0]}: momentum {e.layers[still[0]].momentum:g}"
        remedy = "momentum=0.1, or None for the average of all batches"
        yield Finding(
            "momentum", "warning", still, evidence, "the running statistics never move toward the data", remedy
        )
    yield from _slow(e, moving)


def _slow(e: Examination, moving: dict[str, AnyBatchNorm]) -> Iterator[Finding]:
    slow = {name: left for name, layer in moving.items() if (left := _left(layer)) > LEFT and _towards_new(e, name)}
    if slow:
        name = max(slow, key=lambda each: slow[each])
        layer = e.layers[name]
        evidence = (
            f"{name}: after {int(layer.get_buffer('num_batches_tracked'))} batches {slow[name]:.0%} of 0 and 1 is left"
        )
        remedy = f"{RECALIBRATE}; for the next training a larger momentum, or None, the average of all batches"
        reason = f"momentum {layer.momentum:g} forgets them too slowly for so few batches"
        yield Finding("momentum", "warning", tuple(slow), evidence, reason, remedy)


def _moves(layer: AnyBatchNorm) -> bool:
    return layer.running_mean is not None and layer.momentum is not None


def _left(layer: AnyBatchNorm) -> float:
    """Return the share of the initial values that the running statistics still hold. A new layer holds nothing else."""
    steps = int(layer.num_batches_tracked) if layer.num_batches_tracked is not None else 0
    return (1 - min(max(float(layer.momentum or 0), 0.0), 1.0)) ** steps if steps else 0.0


def _towards_new(e: Examination, name: str) -> bool:
    """Return True if the running statistics are off, and mostly by the share of 0 and 1 that must be in them."""
    found = e.discrepancies.get(name)
    if found is None or not found.off(e.limit, SMALL).any():
        return False
    layer, measured, left = e.layers[name], e.measured[name], _left(e.layers[name])
    mean, var = (layer.get_buffer(f"running_{what}").to(measured.mean) for what in ("mean", "var"))
    std = (measured.var + layer.eps).sqrt()
    off = ((mean - measured.mean) / std).square() + ((var - measured.var) / std.square()).square()
    unexplained = (mean - (1 - left) * measured.mean) / std, (var - left - (1 - left) * measured.var) / std.square()
    return bool(sum(each.square().sum() for each in unexplained) < 0.25 * off.sum())


def eps(e: Examination) -> Iterator[Finding]:
    """Find layers whose eps, and not the variance, is most of what is under the root.

    Test: eps / (var + eps) of the median channel that varies, with the variance of the data. Threshold: above 99 %
    (`SWAMPED`) the layer does not normalize, a warning: the output's standard deviation is less than a tenth of gamma.
    Above a tenth (`NOTICEABLE`) it is over 5 % short: a warning if eps is larger than any framework's default, and else
    a note, since small initial weights give small variances (up to 96 % in torchvision's EfficientNets). A tenth of the
    channels above 99 % is a note too. An eps of 0 divides by zero where a channel is constant, and torch refuses it in
    training: a warning.
    """
    shares = {name: _shares(m.var, e.layers[name].eps) for name, m in e.measured.items()}
    medians = {name: float(share.median()) for name, share in shares.items()}
    bad = {
        name: share
        for name, share in medians.items()
        if share > SWAMPED or (share > NOTICEABLE and e.layers[name].eps > LARGEST_USUAL)
    }
    slight = {
        name: max(medians[name], float(share.quantile(1 - NOTICEABLE)))
        for name, share in shares.items()
        if name not in bad and (medians[name] > NOTICEABLE or share.quantile(1 - NOTICEABLE) > SWAMPED)
    }
    levels: tuple[tuple[Severity, dict[str, float]], ...] = (("warning", bad), ("note", slight))
    for severity, found in levels:
        if found:
            name = max(found, key=lambda each: found[each])
            var = float(e.measured[name].var.median())
            which = "" if found[name] == medians[name] else f" in {NOTICEABLE:.0%} of the channels"
            evidence = (
                f"{name}: eps {e.layers[name].eps:g} is {found[name]:.0%} of var + eps{which}; the median var is "
                f"{var:.2g}"
            )
            reason = "the layer divides by sqrt(eps), so it scales its input and does not normalize it"
            remedy = "eps=1e-5, or larger values at the layer's input"
            yield Finding("eps", severity, tuple(found), evidence, reason, remedy)
    zero = tuple(name for name, layer in e.layers.items() if layer.eps <= NO_EPS)
    if zero:
        evidence = f"{zero[0]}: eps 0"
        yield Finding("eps", "warning", zero, evidence, "a constant channel is divided by zero", "eps=1e-5")


def _shares(var: torch.Tensor, eps: float) -> torch.Tensor:
    """Return eps / (var + eps) of the channels that vary, or a 0 if there is none."""
    alive = var[var > 0]
    return eps / (alive + eps) if len(alive) else var.new_zeros(1)


def resolution(e: Examination) -> Iterator[Finding]:
    """Find inputs whose mean is so large that their number format cannot hold how they vary.

    Test: |mean| / std per channel, against 2^(p/2) for a format of p bits: half of the digits are then spent on the
    mean. In float32 (p = 24) that is 4,096, in float16 (p = 11) 45, in bfloat16 (p = 8) 16. Beyond it a variance as
    E[x^2] - E[x]^2 has no digit left, and neither has the bias of a folded layer more than half of them. A ratio over
    2^8 in a float32 network is a note: bfloat16 sees a constant there. A channel that varies by rounding alone counts
    if that is more than sqrt(eps), because BN then makes values of it.
    """
    bits = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}
    ratios = {}
    for name, measured in e.measured.items():
        std = measured.var.sqrt()
        varies = std > (measured.mean.abs() * torch.finfo(measured.dtype).eps).clamp_max(sqrt(e.layers[name].eps))
        if varies.any():
            ratios[name] = float((measured.mean.abs() / std)[varies].max())
    levels: tuple[tuple[Severity, dict[str, float]], ...] = (
        ("warning", {name: 2 ** (bits.get(e.measured[name].dtype, 24) / 2) for name in ratios}),
        ("note", dict.fromkeys(ratios, 256.0)),
    )
    for severity, limits in levels:
        found = {name: ratios.pop(name) for name in list(ratios) if ratios[name] > limits[name]}
        if found:
            name = max(found, key=lambda each: found[each])
            dtype = str(e.measured[name].dtype).removeprefix("torch.")
            evidence = f"{name}: a channel with |mean| / std = {found[name]:.3g} in {dtype}"
            who = "bfloat16, as autocast makes it," if severity == "note" else f"{dtype}"
            reason = f"{who} spends its digits on the mean and has few or none left for the values"
            remedy = "subtract the mean from the data before the network, or a bias from the layer before"
            yield Finding("resolution", severity, tuple(found), evidence, reason, remedy)


def narrow_statistics(e: Examination) -> Iterator[Finding]:
    """Find running statistics in half precision.

    Test: their dtype. An update of less than half a unit in the last place is lost: with momentum 0.1 a bfloat16 mean
    stops at 96 where the truth is 100 (tests/test_layers.py).
    """
    narrow = {
        name: layer.running_mean.dtype
        for name, layer in e.layers.items()
        if layer.running_mean is not None and layer.running_mean.dtype in (torch.float16, torch.bfloat16)
    }
    if narrow:
        name, dtype = next(iter(narrow.items()))
        evidence = f"{name}: running statistics in {str(dtype).removeprefix('torch.')}"
        reason = "small updates round to nothing, so the statistics stick before they arrive"
        remedy = "bn.BatchNorm1d/2d/3d, which keep float32; or layer.float() on the BN layers after model.half()"
        yield Finding("narrow statistics", "warning", tuple(narrow), evidence, reason, remedy)
