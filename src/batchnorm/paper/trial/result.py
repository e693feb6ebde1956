"""The result of a trial."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...algorithm2.results import format_table
from .tables import trial_table
from .verdict import TrialRow, Verdict


@dataclass(frozen=True)
class TrialResult:
    """The verdict of a trial, a row per contender, and the files. Prints as a table.

    Arguments:
        verdict: "helps", "does not help", "unclear" or "no place".
        sentence: the verdict with its numbers and their spread over seeds.
        score: the name of what was measured on the held-out batches.
        level: the plain network's best: the best score that all seeds reach at one of its learning rates.
        rows: a row per contender.
        notes: what the verdict depends on, such as too few steps.
        folder: the run folder. Its `metrics.jsonl` has every measurement.
        paths: the pictures and the page.
    """

    verdict: Verdict
    sentence: str
    score: str
    level: float | None
    rows: tuple[TrialRow, ...]
    notes: tuple[str, ...]
    folder: Path
    paths: tuple[Path, ...]

    @property
    def reached(self) -> int:
        """Return how many contenders reach the plain network's best with every seed."""
        return sum(row.outcome == "reached" for row in self.rows)

    def __str__(self) -> str:
        head, *lines = trial_table(self.rows, self.level, self.score)
        return "\n".join([format_table(head, lines), self.sentence, *self.notes])
