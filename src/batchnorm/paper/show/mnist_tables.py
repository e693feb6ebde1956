"""Make the tables of Sec. 4.1 from records."""

from __future__ import annotations

from statistics import mean

from ..mnist.records import ARMS, LABELS, grid_means, series, steps_to
from ..training.rows import Row

LEVELS = (0.90, 0.95, 0.97)
STEPS_TITLE = "Training steps to a test accuracy, and the best"


def steps_table(rows: list[Row]) -> list[list[str]]:
    """Return a header and a line an arm: steps to each of `LEVELS`, and the best and the last test accuracy."""
    table = [["", *(f"steps to {level:.0%}" for level in LEVELS), "best", "last"]]
    for arm in ARMS:
        _, accuracies = series(rows, arm, "test_accuracy")
        if not accuracies:
            continue
        reached = (steps_to(rows, arm, level) for level in LEVELS)
        cells = ["not reached" if step is None else f"{step:,}" for step in reached]
        table.append([LABELS[arm], *cells, f"{max(accuracies):.2%}", f"{accuracies[-1]:.2%}"])
    return table


def best_table(rows: list[Row]) -> list[list[str]]:
    """Return a header and a line an arm: its best setting, and the test accuracy there over seeds."""
    table = [["", "learning rate", "initial std", "mean", "worst seed", "best seed"]]
    for arm in ARMS:
        means = grid_means(rows, arm)
        if means:
            lr, std = max(means, key=lambda setting: means[setting])
            found = [row["test_accuracy"] for row in rows if (row["lr"], row["std"], row["arm"]) == (lr, std, arm)]
            accuracies = (f"{accuracy:.2%}" for accuracy in (mean(found), min(found), max(found)))
            table.append([LABELS[arm], f"{lr:g}", f"{std:g}", *accuracies])
    return table
