"""What a person sees in the terminal: a bar for each training while it runs, then a table and the paths."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Event
from typing import NoReturn

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..inception.comparison import fig3_table, fig4_table, read_records
from ..mnist.config import MnistConfig, config_to_json
from ..mnist.data import Mnist
from ..mnist.experiment import run_mnist
from ..mnist.sweep import best_table, run_sweep, settings
from ..training.rows import Row
from ..training.run import Run, new_folder
from .figures import STYLES, figure1, figure2, heat_map
from .inception_report import write_inception_report
from .mnist_report import steps_table, write_report


def show_mnist(config: MnistConfig, data: Mnist, run: Run) -> None:
    """Run Figure 1 into `run` under two progress bars; write its pictures and page; print what came of it."""
    print(f"Run folder: {run.folder}")
    with _progress() as progress:
        bars = {
            arm: progress.add_task(style["label"], total=config.steps, completed=_reached(run, arm), note="")
            for arm, style in STYLES.items()
        }

        def report(row: Row) -> None:
            note = f"test accuracy {row['test_accuracy']:.2%}"
            progress.update(bars[row["arm"]], completed=row["step"], note=note)

        rows = run_mnist(config, data, run, report, Event())
    if not rows:
        _stop_early(run)
    pictures = [*figure1(rows, run.folder), write_report(rows, config_to_json(config), run.folder)]
    print_table("Training steps to a test accuracy", steps_table(rows))
    _print_paths([run.metrics, *pictures])
    if any(_reached(run, arm) < config.steps for arm in STYLES):
        _stop_early(run)


def show_sweep(config: MnistConfig, data: Mnist, run: Run) -> None:
    """Run the sweep into `run` under a progress bar; draw its heat map; print each arm's best setting."""
    print(f"Run folder: {run.folder}")
    total = len(settings(config))
    with _progress() as progress:
        bar = progress.add_task("sweep", total=total, completed=len(run.rows()), note="")

        def report(row: Row) -> None:
            note = f"{STYLES[row['arm']]['label']}, lr {row['lr']:g}, std {row['std']:g}: {row['test_accuracy']:.2%}"
            progress.update(bar, advance=1, note=note)

        rows = run_sweep(config, data, run, report, Event())
    if rows:
        pictures = heat_map(rows, run.folder)
        print_table(f"Best settings after {config.steps:,} steps", best_table(rows))
        _print_paths([run.metrics, *pictures])
    if len(rows) < total:
        _stop_early(run)


def show_report(folders: Sequence[Path], out: Path | None) -> None:
    """Draw Figs. 2 to 4 of the runs in `folders` into `out`; print their tables."""
    records = read_records(folders)
    out = new_folder(out, "report")
    paths = [*figure2(records, out), write_inception_report(records, out)]
    print_table("Figure 3: steps to the plain network's best, and the best", fig3_table(records))
    print_table("Figure 4: crops and ensembles", fig4_table(records))
    _print_paths(paths)


def _reached(run: Run, arm: str) -> int:
    """The last step of `arm` in the records."""
    return max((row["step"] for row in run.rows() if row["arm"] == arm), default=0)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description:>11}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )


def print_table(title: str, lines: list[list[str]]) -> None:
    """Print lines of cells under a title; the first line is the header."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", collapse_padding=True, pad_edge=False)
    for column, name in enumerate(lines[0]):
        # Narrow terminals break the cells between words, but not the names of the lines.
        table.add_column(name, justify="right" if column else "left", no_wrap=not column)
    for line in lines[1:]:
        table.add_row(*line)
    Console().print(table)


def _print_paths(paths: Sequence[Path]) -> None:
    for path in paths:  # by print, since rich would break long paths
        print(path)


def _stop_early(run: Run) -> NoReturn:
    print(f"Stopped early. Go on with: batchnorm mnist --resume {run.folder}")
    sys.exit(130)  # as a shell expects of Ctrl-C: what comes after && wants a whole run
