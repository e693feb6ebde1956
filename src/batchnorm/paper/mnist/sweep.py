"""Train both arms at a grid of learning rates and initial standard deviations, which the paper leaves open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from threading import Event
from typing import NamedTuple

from ...errors import BatchNormError
from ..training.loop import train
from ..training.rows import Row
from ..training.run import Run
from .config import MnistConfig
from .data import Mnist
from .experiment import ArmTraining
from .parallel import in_parallel
from .records import ARMS, SweepFields

LRS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
STDS = (0.01, 0.03, 0.1, 0.3, 1.0)
SEEDS = 3


class Setting(NamedTuple):
    """One training of the sweep."""

    lr: float
    std: float
    seed: int
    arm: str


def settings(base: MnistConfig) -> list[Setting]:
    """Return all trainings of the sweep, in order. The first seed is `base.seed`."""
    return [Setting(*values) for values in product(LRS, STDS, range(base.seed, base.seed + SEEDS), ARMS)]


def check_sweep(base: MnistConfig) -> None:
    """Raise BatchNormError for settings that a sweep would ignore."""
    for name in ("lr", "std", "eval_every"):
        if getattr(base, name) != getattr(MnistConfig(), name):
            option = name.replace("_", "-")
            raise BatchNormError(f"--sweep chooses --{option} itself, or does not need it; leave it out")


def run_sweep(base: MnistConfig, data: Mnist, run: Run, report: Callable[[Row], None], stop: Event) -> list[Row]:
    """Train every setting into `run` and return a row for each. If `run` has rows, train the missing settings alone.

    A row has lr, std, seed, arm and the test accuracy after `base.steps`.

    Arguments:
        base: the settings that all trainings share.
        data: the images that `load_data` returned.
        run: the run folder to write.
        report: called with each new row, from the thread of its training.
        stop: set it to end the sweep at once. Trainings that have not ended leave no row. Ctrl-C sets it.

    Raises:
        BatchNormError: a line of the records is damaged or no row of a sweep.
        StorageError: the run folder cannot be written.
    """
    rows = run.rows(SweepFields)
    run.replace_rows(rows)  # drops a last line that a kill cut short
    done = set(map(_setting, rows))
    jobs = [setting for setting in settings(base) if setting not in done]

    def train_one(setting: Setting) -> None:
        config = replace(base, lr=setting.lr, std=setting.std, seed=setting.seed, eval_every=base.steps)

        def record(row: Row) -> None:
            if row["step"] == config.steps:
                row = {**setting._asdict(), **row}
                run.append(row)
                report(row)

        if not stop.is_set():
            train(ArmTraining(config, setting.arm, data), record, stop)

    if jobs:
        in_parallel(train_one, jobs, base.threads, stop)
    rows = sorted(run.rows(), key=_setting)
    run.replace_rows(rows)
    return rows


def _setting(row: Row) -> Setting:
    return Setting(row["lr"], row["std"], row["seed"], row["arm"])
