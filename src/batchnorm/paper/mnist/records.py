"""Read the records of Sec. 4.1: rows of both arms, of one run or of the sweep."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean
from typing import Annotated, Literal

from ..training.bounds import Bounds, Finite, Positive, Share, Step
from ..training.rows import Row

LABELS = {"plain": "without BN", "bn": "with BN"}
ARMS = tuple(LABELS)
PERCENTILES = (15, 50, 85)  # of the input of one sigmoid, Fig. 1 (b, c)


@dataclass(frozen=True)
class ArmFields:
    """The fields of one measurement. A number that was not finite is None."""

    step: Step
    arm: Literal["plain", "bn"]
    loss: Finite | None
    test_accuracy: Share
    p15: Finite | None
    p50: Finite | None
    p85: Finite | None


@dataclass(frozen=True)
class SweepFields(ArmFields):
    """The fields of one training of the sweep."""

    lr: Positive
    std: Positive
    seed: Annotated[int, Bounds(0, 2**64 - 1)]  # the last may be above the largest of the settings


def last_step(rows: list[Row], arm: str) -> int:
    """Return the last recorded step of `arm`, or 0."""
    return max((row["step"] for row in rows if row["arm"] == arm), default=0)


def steps_to(rows: list[Row], arm: str, accuracy: float) -> int | None:
    """Return the first recorded step at which `arm` has reached `accuracy`, or None."""
    return next((row["step"] for row in rows if row["arm"] == arm and row["test_accuracy"] >= accuracy), None)


def series(rows: list[Row], arm: str, column: str) -> tuple[list[int], list[float]]:
    """Return steps and values of one curve. A value is NaN after the network has diverged."""
    own = [row for row in rows if row["arm"] == arm]
    return [row["step"] for row in own], [float("nan") if row[column] is None else row[column] for row in own]


def grid_means(rows: list[Row], arm: str) -> dict[tuple[float, float], float]:
    """Return the test accuracy of `arm`, averaged over seeds, at each (lr, std) that has rows."""
    settings = sorted({(row["lr"], row["std"]) for row in rows if row["arm"] == arm})
    return {
        setting: mean(row["test_accuracy"] for row in rows if row["arm"] == arm and (row["lr"], row["std"]) == setting)
        for setting in settings
    }
