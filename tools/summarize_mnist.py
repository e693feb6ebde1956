"""Print the tables of records/mnist/README.md from its raw records: python tools/summarize_mnist.py."""

from pathlib import Path
from statistics import mean, stdev

from batchnorm.paper.mnist.records import ARMS, grid_means
from batchnorm.paper.training.rows import Row
from batchnorm.paper.training.run import Run

RECORDS = Path(__file__).parents[1] / "records" / "mnist"
STEPS = (1_000, 2_000, 5_000, 10_000, 50_000)
SEEDS = (1, 2, 3, 4, 5)


def accuracy_table(runs: list[list[Row]]) -> list[str]:
    """Return the test accuracy of both arms at `STEPS`: mean ± standard deviation over the runs."""
    lines = ["| steps | without BN | with BN |", "|---|---|---|"]
    for step in STEPS:
        cells = []
        for arm in ARMS:
            found = [row["test_accuracy"] for rows in runs for row in rows if (row["step"], row["arm"]) == (step, arm)]
            cells.append(f"{mean(found):.2%} ± {stdev(found):.2%}")
        lines.append(f"| {step:,} | {cells[0]} | {cells[1]} |")
    return lines


def sweep_table(rows: list[Row], arm: str) -> list[str]:
    """Return the mean test accuracy of one arm over seeds, by standard deviation (rows) and learning rate (columns)."""
    means = grid_means(rows, arm)
    lrs, stds = sorted({lr for lr, _ in means}), sorted({std for _, std in means})
    lines = [f"| std, lr | {' | '.join(f'{lr:g}' for lr in lrs)} |", "|---" * (1 + len(lrs)) + "|"]
    return lines + [f"| {std:g} | {' | '.join(f'{means[lr, std]:.3f}' for lr in lrs)} |" for std in stds]


def tables() -> dict[str, list[str]]:
    """Return every table by its heading."""
    runs = [Run(RECORDS / f"seed-{seed}").rows() for seed in SEEDS]
    sweep = Run(RECORDS / "sweep").rows()
    return {"accuracy": accuracy_table(runs)} | {arm: sweep_table(sweep, arm) for arm in ARMS}


if __name__ == "__main__":
    for heading, lines in tables().items():
        print(heading, *lines, "", sep="\n")
