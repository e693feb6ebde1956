"""Show the progress of a trial in the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..training.rows import Row
from .config import TrialSettings
from .experiment import Job, jobs


class TrialBar:
    """The progress bar of a trial, in steps of all trainings. Outside a terminal each training prints a line.

    Arguments:
        bars: the display to add the bar to.
        settings: the settings of the trial.
        done: the trainings that have ended, in a run that is resumed.
    """

    def __init__(self, bars: Progress, settings: TrialSettings, done: int) -> None:
        self._bars, self._settings = bars, settings
        self._order = {job: number for number, job in enumerate(jobs(settings))}
        total, done = len(self._order) * settings.steps, done * settings.steps
        self._bar = bars.add_task("trial", total=total, completed=done, note="")

    def progress(self, job: Job, step: int) -> None:
        """Show the number of steps done. Trainings before this one have ended, however early."""
        self._bars.update(self._bar, completed=self._order[job] * self._settings.steps + step)

    def report(self, job: Job, row: Row) -> None:
        """Show a measurement."""
        score = f"{self._settings.score} {row['score']:.4g}" if "score" in row else f"diverged at step {row['step']:,}"
        place = f"{self._order[job] + 1} of {len(self._order)}"
        note = f"{place}: {job.contender.label}, seed {job.seed}: {escape(score)}"
        self._bars.update(self._bar, note=note)
        if not self._bars.console.is_terminal and (row["step"] == self._settings.steps or row.get("diverged")):
            self._bars.console.print(note, soft_wrap=True)


@contextmanager
def trial_bar(settings: TrialSettings, done: int, shown: bool) -> Iterator[TrialBar]:
    """Show a `TrialBar` on stderr while the block runs, if `shown`. `done` trainings have ended."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=Console(stderr=True, quiet=not shown)) as bars:
        yield TrialBar(bars, settings, done)
