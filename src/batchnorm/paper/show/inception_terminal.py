"""Show the trainings, evaluations and figures of Sec. 4.2 in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from ..inception.comparison import PARTS, read_records
from ..inception.jobs import Job
from ..training.rows import Row
from ..training.run import new_folder
from .inception_figures import figure2
from .inception_report import write_inception_report
from .inception_tables import FIG3_TITLE, FIG4_TITLE, fig3_table, fig4_table
from .recipe_figure import recipe_figure
from .recipe_table import RECIPE_TITLE, recipe_table
from .terminal import print_paths, print_table

REFRESH_SECONDS = 0.5
NEGLIGIBLE_WAIT = 0.02  # share of the training time


class TrainingBar:
    """The progress bar of one training. Outside a terminal, as in a log file, each measurement prints a line.

    Arguments:
        bars: the display to add the bar to.
        job: the variant and its settings.
        done: the steps already done, in a run that is resumed.
        images_per_step: images that all processes together train on in one step.
    """

    def __init__(self, bars: Progress, job: Job, done: int, images_per_step: int) -> None:
        self._bars, self._images, self._steps = bars, images_per_step, job.config.steps
        self._bar = bars.add_task(job.variant.name, total=self._steps, completed=done, speed="", loss="", accuracy="")
        self._shown_at = monotonic()
        self._shown_step: int | None = None  # a checkpoint may be later than the last row of the records

    def progress(self, step: int, loss: Tensor) -> None:
        """Show the number of steps done, images per second, and the loss."""
        if self._shown_step is None:
            self._shown_step = step - 1
        seconds = monotonic() - self._shown_at
        # Reading the loss waits for the device, so most steps do not.
        if seconds >= REFRESH_SECONDS or step == self._steps:
            speed = f"{(step - self._shown_step) * self._images / max(seconds, 1e-9):.0f} images/s"
            self._bars.update(self._bar, completed=step, speed=speed, loss=f"loss {loss.item():.3f}")
            self._shown_at, self._shown_step = monotonic(), step

    def report(self, row: Row) -> None:
        """Show the accuracy of a measurement, and the share of time that training waited for images."""
        if row.get("diverged"):
            self._bars.update(self._bar, accuracy=f"diverged at step {row['step']:,}")
        elif row["top1"] is None:
            self._bars.update(self._bar, accuracy="no accuracy: the network's output is not finite")
        else:
            waits = f", {row['waited']:.0%} waiting for images" if row["waited"] > NEGLIGIBLE_WAIT else ""
            self._bars.update(self._bar, accuracy=f"top-1 {row['top1']:.2%}{waits}")
        if not self._bars.console.is_terminal:
            self._bars.console.print(f"step {row['step']:,}: {self._bars.tasks[self._bar].fields['accuracy']}")


@contextmanager
def training_bar(job: Job, done: int, images_per_step: int) -> Iterator[TrainingBar]:
    """Show a `TrainingBar` while the block runs."""
    columns = (TextColumn("{task.description:>17}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    fields = TextColumn("{task.fields[speed]} {task.fields[loss]} {task.fields[accuracy]}")
    with Progress(*columns, fields) as bars:
        yield TrainingBar(bars, job, done, images_per_step)


@contextmanager
def evaluation_bar() -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar of images. Yield the function to call with the images done and all images.

    Outside a terminal, as in a log file, each tenth prints a line.
    """
    with Progress(TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as bars:
        bar, tenths = bars.add_task("images", total=None), 0

        def progress(done: int, images: int) -> None:
            nonlocal tenths
            bars.update(bar, completed=done, total=images)
            if not bars.console.is_terminal and 10 * done // images > tenths:
                tenths = 10 * done // images
                bars.console.print(f"{done:,} of {images:,} images")

        yield progress


def print_evaluation(rows: Sequence[Row]) -> None:
    """Print the accuracies and errors of each evaluated run and of their ensemble."""
    header = ["", "seed", "top-1", "top-5", "top-1 error", "top-5 error"]
    print_table(f"{rows[0]['images']:,} images", [header, *map(_cells, rows)])


def show_report(folders: Sequence[Path], out: Path | None) -> None:
    """Draw Figs. 2 to 4 of the runs in `folders` into `out`, and print their tables.

    Runs of the parts of the recipe have a picture and a table of their own.

    Raises:
        BatchNormError: a folder has no run, no run has records, or `out` is not empty.
        StorageError: `out` cannot be written.
    """
    records = read_records(folders)
    out = new_folder(out, "report")
    paths = [*figure2(records, out), write_inception_report(records, out)]
    print_table(FIG3_TITLE, fig3_table(records))
    if any(record.job.variant.name in PARTS for record in records):
        paths += recipe_figure(records, out)
        print_table(RECIPE_TITLE, recipe_table(records))
    print_table(FIG4_TITLE, fig4_table(records))
    print_paths(paths)


def _cells(row: Row) -> list[str]:
    scores = [row["top1"], row["top5"], 1 - row["top1"], 1 - row["top5"]]
    seeds = ", ".join(run.rpartition(" ")[2] for run in row["runs"])
    return [row["name"], seeds, *(f"{score:.2%}" for score in scores)]
