"""Train a trial into its run folder, under a progress bar, and print the verdict."""

from __future__ import annotations

import sys

from ..escape import printable
from ..paper.show.terminal import print_paths, print_table
from ..paper.training.run import Run
from ..paper.training.signals import stop_on_signal
from ..paper.trial.config import TrialSettings
from ..paper.trial.experiment import Subject
from ..paper.trial.page import TABLE_TITLE
from ..paper.trial.tables import trial_table
from ..paper.trial.whole import finish


def train_trial(subject: Subject, settings: TrialSettings, run: Run) -> None:
    """Train what is missing in `run`, draw, and print the table and the verdict.

    Raises:
        StorageError: the run folder cannot be written.
    """
    print(f"Run folder: {printable(run.folder)}")
    with stop_on_signal() as stop:
        result = finish(subject, settings, run, stop, progress=True)
    if result is None:
        print(f"Stopped early. Continue with: batchnorm trial --resume {printable(run.folder)}")
        sys.exit(130)  # the status of Ctrl-C, so that a shell does not run what follows &&
    print_table(TABLE_TITLE, trial_table(result.rows, result.level, result.score))
    for line in (result.sentence, *result.notes):
        print(printable(line))
    print_paths([run.metrics, *result.paths])
