"""Train the networks of Sec. 4.1 into a run folder, under progress bars, and draw the results."""

from __future__ import annotations

import sys
from threading import Event
from typing import NoReturn

from ..escape import printable
from ..paper.mnist.config import MnistConfig, config_to_json
from ..paper.mnist.data import Mnist
from ..paper.mnist.experiment import run_mnist
from ..paper.mnist.records import ARMS, ArmFields, SweepFields, last_step
from ..paper.mnist.sweep import run_sweep, settings
from ..paper.show.mnist_figures import figure1, heat_map
from ..paper.show.mnist_report import write_mnist_report
from ..paper.show.mnist_tables import best_table, steps_table
from ..paper.show.mnist_terminal import arm_bars, sweep_bar
from ..paper.show.terminal import print_paths, print_table
from ..paper.training.run import Run


def train_arms(config: MnistConfig, data: Mnist, run: Run) -> None:
    """Train both arms into `run`, draw Fig. 1, and print the table of steps to accuracy.

    Raises:
        StorageError: the run folder cannot be written.
    """
    print(f"Run folder: {printable(run.folder)}")
    with arm_bars(config.steps, run.rows(ArmFields)) as report:
        rows = run_mnist(config, data, run, report, Event())
    if not rows:
        _stop_early(run)
    pictures = [*figure1(rows, run.folder), write_mnist_report(rows, config_to_json(config), run.folder)]
    print_table("Training steps to a test accuracy", steps_table(rows))
    print_paths([run.metrics, *pictures])
    if any(last_step(rows, arm) < config.steps for arm in ARMS):
        _stop_early(run)


def train_sweep(config: MnistConfig, data: Mnist, run: Run) -> None:
    """Train the sweep into `run`, draw its heat map, and print each arm's best setting.

    Raises:
        StorageError: the run folder cannot be written.
    """
    print(f"Run folder: {printable(run.folder)}")
    total = len(settings(config))
    with sweep_bar(total, len(run.rows(SweepFields))) as report:
        rows = run_sweep(config, data, run, report, Event())
    if rows:
        pictures = heat_map(rows, run.folder)
        print_table(f"Best settings after {config.steps:,} steps", best_table(rows))
        print_paths([run.metrics, *pictures])
    if len(rows) < total:
        _stop_early(run)


def _stop_early(run: Run) -> NoReturn:
    print(f"Stopped early. Continue with: batchnorm mnist --resume {printable(run.folder)}")
    sys.exit(130)  # the status of Ctrl-C, so that a shell does not run what follows &&
