"""Show the trainings of Sec. 4.1 in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..mnist.records import LABELS, last_step
from ..training.rows import Row

Report = Callable[[Row], None]


@contextmanager
def arm_bars(steps: int, rows: list[Row]) -> Iterator[Report]:
    """Show a progress bar for each arm of Fig. 1. Yield the function to call with each new row.

    Arguments:
        steps: the number of steps of each arm.
        rows: the records so far, of a run that is resumed.
    """
    with _progress() as progress:
        bars = {
            arm: progress.add_task(label, total=steps, completed=last_step(rows, arm), note="")
            for arm, label in LABELS.items()
        }

        def report(row: Row) -> None:
            note = f"test accuracy {row['test_accuracy']:.2%}"
            progress.update(bars[row["arm"]], completed=row["step"], note=note)

        yield report


@contextmanager
def sweep_bar(trainings: int, done: int) -> Iterator[Report]:
    """Show a progress bar of trainings, `done` of them so far. Yield the function to call with each new row."""
    with _progress() as progress:
        bar = progress.add_task("sweep", total=trainings, completed=done, note="")

        def report(row: Row) -> None:
            note = f"{LABELS[row['arm']]}, lr {row['lr']:g}, std {row['std']:g}: {row['test_accuracy']:.2%}"
            progress.update(bar, advance=1, note=note)

        yield report


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description:>11}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
