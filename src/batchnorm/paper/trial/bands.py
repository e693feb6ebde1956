"""Summarize the curves of a trial over seeds, for the picture and the page."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, nan
from statistics import mean
from typing import NamedTuple

from ..training.rows import Row
from .config import TrialSettings
from .records import Contender, Curve, contenders, curves


class Band(NamedTuple):
    """Lowest, mean and highest score over seeds at each step, and the first step at which a seed diverged."""

    steps: list[int]
    low: list[float]
    mean: list[float]
    high: list[float]
    diverged: int | None


def bands(rows: Sequence[Row], settings: TrialSettings) -> dict[Contender, Band]:
    """Return the band of each contender, over the seeds that have a score at a step."""
    found = {contender: curves(rows, contender) for contender in contenders(settings.arms, settings.lr)}
    return {contender: _band(list(seeds.values())) for contender, seeds in found.items()}


def score_range(rows: Sequence[Row], settings: TrialSettings) -> tuple[float, float]:
    """Return where the axis starts and ends: all of 0 to 1 for accuracy, otherwise from the first score to the best.

    A network that diverges has scores far outside.
    """
    if settings.score == "accuracy":
        return 0.0, 1.0
    scores = [row["score"] for row in rows if row.get("score") is not None]
    starts = [row["score"] for row in rows if row.get("score") is not None and row["step"] == 0]
    best = (max if settings.higher else min)(scores, default=1.0)
    ends = [best, *starts] if starts else [best, *scores]
    margin = 0.05 * (max(ends) - min(ends)) or 1.0
    return min(ends) - margin, max(ends) + margin


def _band(members: Sequence[Curve]) -> Band:
    values: dict[int, list[float]] = {}
    for curve in members:
        for step, score in zip(curve.steps, curve.scores, strict=True):
            values.setdefault(step, []).append(score)
    steps = sorted(step for step, found in values.items() if len(found) == max(map(len, values.values())))
    low, middle, high = ([_picked(pick, values[step]) for step in steps] for pick in (min, mean, max))
    ends = [curve.diverged for curve in members if curve.diverged is not None]
    return Band(steps, low, middle, high, min(ends, default=None))


def _picked(pick, scores: list[float]) -> float:
    return pick(scores) if all(map(isfinite, scores)) else nan
