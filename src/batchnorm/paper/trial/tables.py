"""Make the table of a trial."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .verdict import TrialRow, spread


def trial_table(rows: Sequence[TrialRow], level: float | None, score: str) -> list[list[str]]:
    """Return a header, and for each contender the steps to the plain network's best, and its own best score."""
    goal = "the plain network's best" if level is None else f"{level:.4g}"
    head = ["", f"steps to {goal}", f"best {score}", "note"]
    return [head, *([row.name, _steps(row), _best(row.best), row.reason] for row in rows)]


def _steps(row: TrialRow) -> str:
    found = [step for step in row.steps if step is not None]
    missing = "" if len(found) == len(row.steps) else f" ({len(found)} of {len(row.steps)} seeds)"
    return f"{spread(found, ',.0f', ',.0f')}{missing}" if found else "never"


def _best(best: Sequence[float]) -> str:
    finite = [score for score in best if math.isfinite(score)]
    return spread(finite) if finite else "not finite"
