"""Evaluate trained networks of Sec. 4.2 under a progress bar, and add the results to their records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..paper.inception.config import InceptionConfig
from ..paper.inception.evaluate import evaluate
from ..paper.inception.jobs import EVALUATIONS, runs
from ..paper.show.inception_terminal import evaluation_bar, print_evaluation
from ..paper.training.rows import append_row
from ..paper.training.settings import check_settings


def evaluate_runs(folders: Sequence[Path], data: str, crops: int, folded: bool, workers: int | None) -> None:
    """Evaluate the runs in `folders`, print a line each, and append the rows to the records of the first run.

    Raises:
        BatchNormError: the number of workers is out of bounds, a folder has no run, or a run cannot be evaluated on
            these images.
        StorageError: the records cannot be written.
    """
    check_settings(InceptionConfig(workers=workers))
    jobs = runs(folders)
    print(f"Evaluating {'with every BN folded away' if folded else 'with BN layers'}, crops: {crops}", flush=True)
    with evaluation_bar() as progress:
        rows = evaluate(jobs, data, crops, folded, workers, progress)
    print_evaluation(rows)
    for row in rows:
        append_row(jobs[0].folder / EVALUATIONS, row)
