"""Read the records of a trial: which contenders there are, the fields of a row, and the curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..training.bounds import Finite, Positive, Seed, Step

if TYPE_CHECKING:
    from ..training.rows import Row  # which needs pydantic

LABELS = {"plain": "without BN", "bn": "with BN"}
# Factors on the learning rate. Those of BN are the paper's (Sec. 4.2.2). The plain network has one more, so that a
# rate too high for it does not decide the comparison.
TIMES = {"plain": (0.2, 1.0, 5.0, 30.0), "bn": (1.0, 5.0, 30.0)}


@dataclass(frozen=True)
class TrialFields:
    """The fields of one measurement. A number that was not finite is None. The row of a divergence has no score."""

    arm: Literal["plain", "bn"]
    times: Positive
    lr: Positive
    seed: Seed
    step: Step
    loss: Finite | None
    score: Finite | None = None
    diverged: bool = False


class Contender(NamedTuple):
    """A network and its learning rate."""

    arm: str
    times: float
    lr: float

    @property
    def label(self) -> str:
        """Return the name for people."""
        return f"{LABELS[self.arm]}, lr {self.lr:.4g}"


class Curve(NamedTuple):
    """The scores of one contender with one seed. They are NaN where the network's output was not finite."""

    steps: list[int]
    scores: list[float]
    diverged: int | None


def contenders(arms: Sequence[str], lr: float) -> list[Contender]:
    """Return all contenders, the plain network first."""
    return [Contender(arm, times, float(f"{lr * times:.12g}")) for arm in arms for times in TIMES[arm]]


def curves(rows: Sequence[Row], contender: Contender) -> dict[int, Curve]:
    """Return the curve of each seed that has rows."""
    found: dict[int, Curve] = {}
    for row in rows:
        if (row["arm"], row["times"]) == (contender.arm, contender.times):
            curve = found.get(row["seed"], Curve([], [], None))
            if row.get("diverged"):
                found[row["seed"]] = curve._replace(diverged=row["step"])
            else:
                score = row.get("score")
                found[row["seed"]] = Curve(
                    [*curve.steps, row["step"]], [*curve.scores, math.nan if score is None else score], curve.diverged
                )
    return found
