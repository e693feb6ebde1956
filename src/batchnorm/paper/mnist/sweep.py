"""The grid of learning rates and initial spreads that the paper leaves open, for both arms and several seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from statistics import mean
from threading import Event

from ...errors import BatchNormError
from ..training.loop import train
from ..training.rows import Row
from ..training.run import Run
from .config import MnistConfig
from .data import Mnist
from .experiment import ARMS, LABELS, ArmTraining, in_parallel

LRS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
STDS = (0.01, 0.03, 0.1, 0.3, 1.0)
SEEDS = 3


Setting = tuple[float, float, int, str]


def settings(base: MnistConfig) -> list[Setting]:
    """Every training of the sweep: (lr, std, seed, arm)."""
    return list(product(LRS, STDS, range(base.seed, base.seed + SEEDS), ARMS))


def check_sweep(base: MnistConfig) -> None:
    """Raise BatchNormError for settings that a sweep would ignore."""
    for name in ("lr", "std", "eval_every"):
        if getattr(base, name) != getattr(MnistConfig(), name):
            option = name.replace("_", "-")
            raise BatchNormError(f"--sweep chooses --{option} itself, or does without; leave it out")


def run_sweep(base: MnistConfig, data: Mnist, run: Run, report: Callable[[Row], None], stop: Event) -> list[Row]:
    """Train both arms at every (lr, std) with `SEEDS` seeds from `base.seed` on; returns a row a training.

    Each row has lr, std, seed, arm and the test accuracy after `base.steps`. A resumed sweep trains what is missing.

    Arguments:
        report: called with every row as its training ends, from that training's thread.
        stop: set it (Ctrl-C) and the sweep ends at once; trainings under way leave no row.
    """
    rows = run.rows()
    run.replace_rows(rows)  # without a line that a kill cut short
    done = set(map(_key, rows))
    jobs = [setting for setting in settings(base) if setting not in done]

    def train_one(setting: Setting) -> None:
        lr, std, seed, arm = setting
        config = replace(base, lr=lr, std=std, seed=seed, eval_every=base.steps)

        def record(row: Row) -> None:
            if row["step"] == config.steps:
                row = {"lr": lr, "std": std, "seed": seed, "arm": arm, **row}
                run.append(row)
                report(row)

        if not stop.is_set():
            train(ArmTraining(config, arm, data), record, stop)

    if jobs:
        in_parallel(train_one, jobs, base.threads, stop)
    rows = sorted(run.rows(), key=_key)
    run.replace_rows(rows)
    return rows


def grid_means(rows: list[Row], arm: str) -> dict[tuple[float, float], float]:
    """Test accuracy of `arm` at every (lr, std) that has rows, averaged over seeds."""
    settings = sorted({(row["lr"], row["std"]) for row in rows if row["arm"] == arm})
    return {
        setting: mean(row["test_accuracy"] for row in rows if row["arm"] == arm and (row["lr"], row["std"]) == setting)
        for setting in settings
    }


def best_table(rows: list[Row]) -> list[list[str]]:
    """Header and a line an arm: its best setting and the test accuracy there, over seeds."""
    table = [["", "learning rate", "initial std", "mean", "worst seed", "best seed"]]
    for arm in ARMS:
        means = grid_means(rows, arm)
        if means:
            lr, std = max(means, key=lambda setting: means[setting])
            found = [row["test_accuracy"] for row in rows if _key(row)[:2] == (lr, std) and row["arm"] == arm]
            table.append(
                [LABELS[arm], f"{lr:g}", f"{std:g}", *(f"{x:.2%}" for x in (mean(found), min(found), max(found)))]
            )
    return table


def _key(row: Row) -> Setting:
    return row["lr"], row["std"], row["seed"], row["arm"]
