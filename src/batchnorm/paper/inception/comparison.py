"""Figs. 2 to 4 as numbers: the variants' curves, steps to the plain network's best, crops and ensembles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from ...errors import BatchNormError
from ..training.rows import Row, read_rows
from ..training.run import Run
from .jobs import EVALUATIONS, Job, runs
from .records import EvaluationRow, TrainingRow
from .variants import BY_NAME, INCEPTION, rescaled

# Fig. 3: steps to a top-1 of 72.2 %, and the best top-1. Where the paper gives no number, its words.
PAPER_FIG3 = {
    "inception": ("31.0M", "72.2%"),
    "bn-baseline": ("13.3M", "72.7%"),
    "bn-x5": ("2.1M", "73.0%"),
    "bn-x30": ("2.7M", "74.8%"),
    "bn-x5-sigmoid": ("never", "69.8%"),
    "inception-x5": ("reached infinity", ""),
    "inception-sigmoid": ("never", "stays at chance"),
}


class PaperResult(NamedTuple):
    """One line of Fig. 4, as printed. Empty where the paper has nothing."""

    model: str
    size: str
    crops: str
    models: str
    top1_error: str
    top5_error: str


PAPER_FIG4 = (
    PaperResult("GoogLeNet ensemble", "224", "144", "7", "", "6.67%"),
    PaperResult("Deep Image low-res", "256", "", "1", "", "7.96%"),
    PaperResult("Deep Image high-res", "512", "", "1", "24.88%", "7.42%"),
    PaperResult("Deep Image ensemble", "variable", "", "", "", "5.98%"),
    PaperResult("BN-Inception single crop", "224", "1", "1", "25.2%", "7.82%"),
    PaperResult("BN-Inception multicrop", "224", "144", "1", "21.99%", "5.82%"),
    PaperResult("BN-Inception ensemble", "224", "144", "6", "20.1%", "4.9%"),
)


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
        BatchNormError: A folder is not a run of batchnorm inception, its records are damaged, or it has no accuracy.
    """
    found = [
        Record(job, Run(job.folder).rows(TrainingRow), read_rows(job.folder / EVALUATIONS, EvaluationRow))
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
    """Group the records by variant, one record a seed. The order is the paper's variants, then the ensemble's."""
    found: dict[str, list[Record]] = {}
    order = list(BY_NAME)
    for record in sorted(records, key=lambda r: order.index(r.job.variant.name)):
        found.setdefault(record.job.variant.name, []).append(record)
    return found


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


def fig3_table(records: Sequence[Record]) -> list[list[str]]:
    """Return Fig. 3: a header, and for each variant the steps to the plain network's best top-1, and its own best."""
    groups = by_variant(records)
    plain = groups.get(INCEPTION.name)
    level = mean(record.best["top1"] for record in plain) if plain else None
    reach = f"steps to {level:.2%}" if level is not None else "steps to the plain network's best"
    table = [["", "lr", "seeds", reach, "best top-1", "at step", "paper: steps to 72.2%", "best"]]
    for name, members in groups.items():
        steps = "" if level is None else _reached([record.steps_to(level) for record in members], members)
        best = [record.best for record in members]
        config = members[0].job.config
        rate = rescaled(members[0].job.variant, config.lr, config.decay_every).lr
        cells = [_spread([row["top1"] for row in best]), f"{mean(row['step'] for row in best):,.0f}"]
        table.append([name, f"{rate:g}", str(len(members)), steps, *cells, *PAPER_FIG3.get(name, ("", ""))])
    return table


def fig4_table(records: Sequence[Record]) -> list[list[str]]:
    """Return Fig. 4: a header, the newest evaluation of each kind, and the paper's results. Errors are in %."""
    head = ["", "image size", "crops", "models", "top-1 error", "top-5 error"]
    ours = {}
    for row in (row for record in records for row in record.evaluations):
        errors = [f"{1 - row['top1']:.2%}", f"{1 - row['top5']:.2%}"]
        line = [row["name"], str(row["size"]), str(row["crops"]), str(len(row["runs"])), *errors]
        ours[(*row["runs"], row["size"], row["crops"])] = line
    return [head, *ours.values(), *([f"paper: {line[0]}", *line[1:]] for line in PAPER_FIG4)]


def _reached(steps: list[int | None], members: Sequence[Record]) -> str:
    found = [step for step in steps if step is not None]
    missing = "" if len(found) == len(steps) else f" ({len(found)} of {len(steps)} seeds)"
    ends = [record.diverged for record in members if record.diverged is not None]
    end = f"; diverged at {min(ends):,}" if ends else ""
    return (f"{mean(found):,.0f}{missing}" if found else "never") + end


def _spread(values: list[float]) -> str:
    return f"{mean(values):.2%}" + (f" ± {stdev(values) * 100:.2f}" if len(values) > 1 else "")
