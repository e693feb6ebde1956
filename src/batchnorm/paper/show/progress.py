"""What a person sees while Inception trains: a bar, images a second, loss, accuracy, time left."""

from __future__ import annotations

import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from threading import Event
from types import FrameType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from ..images.sources import open_both
from ..inception.evaluate import evaluate
from ..inception.jobs import CHECKPOINT, EVALUATIONS, Job, runs
from ..inception.trainer import Trainer, run_variant
from ..training.processes import Processes
from ..training.rows import Row, append_row
from ..training.run import Run
from .console import print_table

REFRESH_SECONDS = 0.5
NEGLIGIBLE_WAIT = 0.02  # of the time


def show_jobs(jobs: list[Job], processes: Processes) -> bool:
    """Train every job that is not at its end, one after another; whether all got there.

    Ctrl-C, or SIGTERM, ends the one under way at its next step, with a checkpoint.
    """
    opened = lru_cache(maxsize=1)(open_both)  # the jobs of one command have the same images
    with _stopping() as stop:
        for job in jobs:
            if not stop.is_set():
                images = opened(job.config.data, job.index)
                _show(job, Trainer(job.config, job.variant, *images, processes), stop)
    return not stop.is_set()


def _show(job: Job, trainer: Trainer, stop: Event) -> None:
    if trainer.processes.rank > 0:
        run_variant(trainer, None, None, _ignore, stop)
        return
    run = Run(job.folder)
    print(f"Run folder: {run.folder}", flush=True)
    with run.claimed(), _display(job, run, trainer.processes) as (report, progress):
        run_variant(trainer, run, run.checkpoint(CHECKPOINT), report, stop, progress)


def show_evaluation(folders: Sequence[Path], data: str, crops: int, folded: bool, workers: int | None) -> None:
    """Evaluate the runs in `folders` under a progress bar; print a row each, and keep them with the first run."""
    jobs = runs(folders)
    print(f"Evaluating {'with every BN folded away' if folded else 'with BN layers'}, crops: {crops}", flush=True)
    columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as bars:
        rows = evaluate(jobs, data, crops, folded, workers, _count_images(bars))
    header = ["", "seed", "top-1", "top-5", "top-1 error", "top-5 error"]
    print_table(f"{rows[0]['images']:,} images", [header, *map(_cells, rows)])
    for row in rows:
        append_row(jobs[0].folder / EVALUATIONS, row)


def _count_images(bars: Progress) -> Callable[[int, int], None]:
    """What to call with the images done and all: it moves a bar; a log file gets a line a tenth."""
    bar, said = bars.add_task("images", total=None), 0

    def progress(done: int, images: int) -> None:
        nonlocal said
        bars.update(bar, completed=done, total=images)
        if not bars.console.is_terminal and 10 * done // images > said:
            said = 10 * done // images
            bars.console.print(f"{done:,} of {images:,} images")

    return progress


def _cells(row: Row) -> list[str]:
    scores = [row["top1"], row["top5"], 1 - row["top1"], 1 - row["top5"]]
    return [row["name"], ", ".join(run.rpartition(" ")[2] for run in row["runs"]), *(f"{x:.2%}" for x in scores)]


@contextmanager
def _display(
    job: Job, run: Run, processes: Processes
) -> Iterator[tuple[Callable[[Row], None], Callable[[int, Tensor], None]]]:
    """What to call with each row, and after each step."""
    reached = max((row["step"] for row in run.rows()), default=0)
    columns = (TextColumn("{task.description:>17}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    fields = TextColumn("{task.fields[speed]} {task.fields[loss]} {task.fields[accuracy]}")
    images = job.config.batch_size * processes.world_size
    with Progress(*columns, fields) as bars, _tensorboard(run.folder) as write_row:
        bar = bars.add_task(job.variant.name, total=job.config.steps, completed=reached, speed="", loss="", accuracy="")
        shown = [time.monotonic()]

        def progress(step: int, loss: Tensor) -> None:
            if len(shown) == 1:
                shown.append(step - 1)
            seconds = time.monotonic() - shown[0]
            if seconds >= REFRESH_SECONDS or step == job.config.steps:
                speed = f"{(step - shown[1]) * images / max(seconds, 1e-9):.0f} images/s"
                bars.update(bar, completed=step, speed=speed, loss=f"loss {loss.item():.3f}")
                shown[:] = [time.monotonic(), step]

        def report(row: Row) -> None:
            write_row(row)
            if row.get("diverged"):
                bars.update(bar, accuracy=f"diverged at step {row['step']:,}")
            elif row["top1"] is not None:
                waits = f", {row['waited']:.0%} waiting for images" if row["waited"] > NEGLIGIBLE_WAIT else ""
                bars.update(bar, accuracy=f"top-1 {row['top1']:.2%}{waits}")
            if not bars.console.is_terminal:  # a log file gets a line a measurement
                bars.console.print(f"step {row['step']:,}: {bars.tasks[bar].fields['accuracy']}")

        yield report, progress


@contextmanager
def _tensorboard(folder: Path) -> Iterator[Callable[[Row], None]]:
    """Writes rows for TensorBoard too, if it is installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its own, of its own dependencies
            from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError:
        yield _ignore
        return

    with SummaryWriter(str(folder / "tensorboard")) as writer:

        def write_row(row: Row) -> None:
            for name, value in row.items():
                if name != "step" and isinstance(value, float):
                    writer.add_scalar(name, value, row["step"])

        yield write_row


@contextmanager
def _stopping() -> Iterator[Event]:
    """An event that the first SIGINT or SIGTERM sets; the second one has its usual effect."""
    stop = Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, _: FrameType | None) -> None:
        stop.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ignore(row: Row) -> None:
    """No display."""
