"""Make the table of what each part of the recipe of Sec. 4.2.1 gives, from records."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev
from typing import NamedTuple

from ..inception.comparison import Record, by_variant
from ..inception.variants import ALONE, BN_BASELINE, BN_X5, INCEPTION, KEEPS

RECIPE_TITLE = "What each part of the recipe gives"
CHANGES = ("higher rate", "no Dropout", "L2 / 5", "faster decay", "no LRN", "shuffling", "weaker distortions")


class Line(NamedTuple):
    """One variant of the study: its label, its base, its seeds, and the plain network's best to reach."""

    label: str
    name: str
    base: str
    members: Sequence[Record]
    level: float | None

    @property
    def best(self) -> list[float]:
        """The best top-1 of each seed."""
        return [record.best["top1"] for record in self.members]

    @property
    def steps(self) -> list[int]:
        """The steps to the level, of the seeds that reach it."""
        reached = [record.steps_to(self.level) for record in self.members] if self.level is not None else []
        return [step for step in reached if step is not None]


def study_lines(records: Sequence[Record]) -> list[Line]:
    """Return BN-baseline and each part alone, then BN-x5 and all parts but each one. Leave out what was not trained."""
    groups = by_variant(records)
    plain = groups.get(INCEPTION.name)
    level = mean(record.best["top1"] for record in plain) if plain else None
    lines = []
    for base, variants, words in ((BN_BASELINE, ALONE, "+ {}"), (BN_X5, KEEPS, "all but {}")):
        labels = (base.name, *(words.format(change) for change in CHANGES))
        for label, variant in zip(labels, (base, *variants), strict=True):
            if members := groups.get(variant.name):
                lines.append(Line(label, variant.name, base.name, members, level))
    return lines


def recipe_table(records: Sequence[Record]) -> list[list[str]]:
    """Return a header and a line for each variant: the steps to the plain network's best, its best, and its gain.

    The gain is the difference of the best top-1 from the base of the same seed, in points: mean and standard deviation.
    """
    lines = study_lines(records)
    level = lines[0].level if lines else None
    reach = f"steps to {level:.2%}" if level is not None else "steps to the plain network's best"
    bases = {line.name: {r.job.config.seed: r.best["top1"] for r in line.members} for line in lines}
    table = [["", "variant", "seeds", reach, "best top-1", "points over its base"]]
    for line in lines:
        base = bases.get(line.base, {}) if line.name != line.base else {}
        gains = [
            100 * (record.best["top1"] - base[record.job.config.seed])
            for record in line.members
            if record.job.config.seed in base
        ]
        best = [100 * value for value in line.best]
        cells = [_reached(line), _spread(best, "{:.2f}%"), _spread(gains, "{:+.2f}")]
        table.append([line.label, line.name, str(len(line.members)), *cells])
    return table


def _reached(line: Line) -> str:
    if line.level is None:
        return ""
    if not line.steps:
        return "never"
    missing = "" if len(line.steps) == len(line.members) else f" ({len(line.steps)} of {len(line.members)} seeds)"
    return _spread(line.steps, "{:,.0f}") + missing


def _spread(values: Sequence[float], form: str) -> str:
    if not values:
        return ""
    digits = 0 if ".0f" in form else 2
    return form.format(mean(values)) + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")
