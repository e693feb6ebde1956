"""Read the records of runs, and compare variants: their curves, their best, and the steps to an accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from ...errors import BatchNormError
from ..training.rows import Row, read_rows
from ..training.run import Run
from .jobs import EVALUATIONS, Job, runs
from .records import EvaluationFields, TrainingFields
from .variants import ALONE, BY_NAME, KEEPS

PARTS = frozenset(variant.name for variant in (*ALONE, *KEEPS))  # of the recipe


@dataclass(frozen=True)
class Record:
    """The records of one run: its job, the rows of its training, and those of its evaluations."""

    job: Job
    rows: list[Row]
    evaluations: list[Row]

    @property
    def curve(self) -> tuple[list[int], list[float]]:
        """The measured steps, and top-1 on the validation images there. It is NaN where the network had diverged."""
        rows = [row for row in self.rows if "top1" in row]
        return [row["step"] for row in rows], [float("nan") if row["top1"] is None else row["top1"] for row in rows]

    @property
    def best(self) -> Row:
        """The first row with the best top-1."""
        return max((row for row in self.rows if row.get("top1") is not None), key=lambda row: row["top1"])

    @property
    def diverged(self) -> int | None:
        """The last step if its loss or the network's output was not finite, otherwise None."""
        last = self.rows[-1]
        return last["step"] if last.get("diverged") or last.get("top1", 0) is None else None

    def steps_to(self, accuracy: float) -> int | None:
        """Return the first measured step with at least this top-1, or None."""
        return next((row["step"] for row in self.rows if (row.get("top1") or 0) >= accuracy), None)


def read_records(folders: Sequence[Path]) -> list[Record]:
    """Read the records of runs, and of folders of runs. Leave out runs without any measurement.

    Raises:
        BatchNormError: a folder is not a run of batchnorm inception, its records are damaged, or it has no accuracy.
    """
    found = [
        Record(job, Run(job.folder).rows(TrainingFields), read_rows(job.folder / EVALUATIONS, EvaluationFields))
        for job in runs(folders)
    ]
    if not any(record.rows for record in found):
        raise BatchNormError(f"{found[0].job.folder} has no records yet; train it first")
    found = [record for record in found if record.rows]
    for record in found:
        if all(row.get("top1") is None for row in record.rows):
            raise BatchNormError(f"{Run(record.job.folder).metrics} has no accuracy, top1, in any row; train it first")
    return found


def by_variant(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Group the records by variant, one record a seed: the comparison, the ensemble, then the parts."""
    found: dict[str, list[Record]] = {}
    order = list(BY_NAME)
    for record in sorted(records, key=lambda r: order.index(r.job.variant.name)):
        found.setdefault(record.job.variant.name, []).append(record)
    return found


def without_parts(records: Sequence[Record]) -> list[Record]:
    """Leave out the parts of the recipe, which the paper's figures do not have."""
    return [record for record in records if record.job.variant.name not in PARTS]


class Band(NamedTuple):
    """The spread of top-1 over seeds, at each step."""

    steps: list[int]
    worst: list[float]
    mean: list[float]
    best: list[float]


def band(members: Sequence[Record]) -> Band:
    """Return the worst, mean and best top-1 over seeds, at the steps that most seeds have measured."""
    values: dict[int, list[float]] = {}
    for record in members:
        for step, value in zip(*record.curve, strict=True):
            values.setdefault(step, []).append(value)
    steps = sorted(step for step, found in values.items() if len(found) == max(map(len, values.values())))
    worst, middle, best = ([pick(values[step]) for step in steps] for pick in (min, mean, max))
    return Band(steps, worst, middle, best)
