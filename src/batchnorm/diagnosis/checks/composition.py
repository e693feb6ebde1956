"""Batches whose statistics are not those of the data: padding, and examples in order."""

from __future__ import annotations

from collections.abc import Iterator

from ..examination import Examination
from ..finding import Finding, Severity
from ..significance import z_of_f

PADDED = 0.15  # share of the positions
FRAMED = 0.075
ALIKE = 0.05  # intraclass correlation


def padding(e: Examination) -> Iterator[Finding]:
    """Find padding that enters the statistics.

    Test: the share of positions at the end of an axis where no channel changes, over all examples. Values computed from
    data differ from position to position; values computed from padding do not. Of rows (N, C) it is the share that
    equals the next row, less the share that equals any other. Threshold: 15 % of the positions
    (`PADDED`), and over twice the share at the other end: pictures with a frame have both. Less is a note, from 7.5 %
    (`FRAMED`): MNIST's frame has 7 to 8 % at one end behind a convolution.
    """
    shares = {}
    for name, measured in e.measured.items():
        low, high = sorted([measured.tails.tail, measured.tails.head])
        if high > FRAMED and high > 2 * low and name not in e.kept:
            shares[name] = high
    padded = {name: share for name, share in shares.items() if share > PADDED}
    framed = {name: share for name, share in shares.items() if name not in padded}
    levels: tuple[tuple[Severity, dict[str, float]], ...] = (("warning", padded), ("note", framed))
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
    intraclass correlation (F - 1) / (F - 1 + batch size) over 5 % (`ALIKE`).
    """
    found = {}
    for name, measured in e.measured.items():
        ratio = measured.means.ratio()
        several_calls = measured.means.batches > e.training.counted  # they differ as the inputs of two layers do
        if ratio is None or name in e.kept or several_calls:
            continue
        f, between, within = ratio
        size = measured.means.examples.count / measured.means.batches
        alike = (f - 1) / (f - 1 + size)
        off = (z_of_f(f, between, within) > e.limit) & (alike > ALIKE)
        if off.any():
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
