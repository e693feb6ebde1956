"""Batches whose statistics are not those of the data: padding, and examples in order."""

from __future__ import annotations

from collections.abc import Iterator

from ..examination import Examination
from ..finding import Finding, Severity
from ..significance import z_of_f
from .stale import SMALL

PADDED = 0.15  # share of the positions
_STANDARD_ERRORS = 3.0  # over batches
ALIKE = 0.05  # intraclass correlation


def padding(e: Examination) -> Iterator[Finding]:
    """Find padding that enters the statistics.

    Test: the share of positions at the end of an axis where no channel changes, over all examples. Values computed from
    data differ from position to position; values computed from padding do not. Of rows (N, C) it is the share that
    equals the next row, less the share that equals any other.

    Pictures have a frame at both ends, padding is at one: most of the share must have no counterpart at the other end.
    Behind a convolution a frame may look one-sided, because the stride leaves less of it at the end. So a layer is
    not named either if the network's input has a frame, on its least even axis, that is larger than the difference.
    Padding that is smaller than the frame is not seen.

    Threshold: 15 % of the positions (`PADDED`) is a warning. Less is a note, from a twentieth more than at the other
    end (`SMALL`). A share p of values one standard deviation off moves the mean by p, and statistics that are off by
    that are a note too. It must exceed three standard errors over batches: rows of a few categories are alike by
    chance.
    """
    shares = {}
    for name, measured in e.measured.items():
        tails = measured.tails
        if e.training.tails.framed and e.training.tails.high > tails.excess:
            continue
        if tails.one_sided and tails.excess > max(SMALL, _STANDARD_ERRORS * tails.error) and name not in e.kept:
            shares[name] = tails.high
    padded = {name: share for name, share in shares.items() if share > PADDED}
    slightly = {name: share for name, share in shares.items() if name not in padded}
    levels: tuple[tuple[Severity, dict[str, float]], ...] = (("warning", padded), ("note", slightly))
    for severity, found in levels:
        if not found:
            continue
        name = next(iter(found))
        evidence = f"{name}: {found[name]:.0%} of the positions are constant, one after another"
        reason = "padding counts as data: mean and variance depend on how the batch was padded"
        remedy = "with bn.masked(model, lengths=lengths): around the forward, or batches of one length"
        yield Finding("padding", severity, tuple(found), evidence, reason, remedy)


def sorted_batches(e: Examination) -> Iterator[Finding]:
    """Find batches whose examples are more alike than chance makes them.

    Test: one-way analysis of variance of the examples' means, F of the variance between batches over that within them,
    as a normal deviate (Paulson), against Bonferroni's limit over all channels. Threshold: beyond the limit, and an
    intraclass correlation (F - 1) / (F - 1 + batch size) over 5 % (`ALIKE`). In the first layer one such channel
    counts. Behind it the examples of a batch share the noise of the statistics before, which makes them alike too:
    there more than a twentieth of the channels (`SMALL`) must be off.
    """
    found, first = {}, next(iter(e.measured), "")
    for name, measured in e.measured.items():
        ratio = measured.means.ratio()
        several_calls = measured.means.batches > e.training.counted  # they differ as the inputs of two layers do
        if ratio is None or name in e.kept or several_calls:
            continue
        f, between, within = ratio
        size = measured.means.examples.count / measured.means.batches
        alike = (f - 1) / (f - 1 + size)
        off = (z_of_f(f, between, within) > e.limit) & (alike > ALIKE)
        if off.sum() > (0 if name == first else SMALL * len(off)):
            found[name] = (float(f[off].max()), float(alike[off].max()), int(off.sum()), len(off))
    if found:
        name = next(iter(found))
        f, alike, channels, of = found[name]
        evidence = (
            f"{name}: batch means differ by F = {f:.3g} (chance: 1) in {channels} of {of} channels; "
            f"{alike:.0%} of the variance between examples is between batches"
        )
        reason = "sorted or grouped batches have other statistics than the data, and each step normalizes by another"
        yield Finding(
            "sorted batches", "warning", tuple(found), evidence, reason, "shuffle: DataLoader(..., shuffle=True)"
        )
