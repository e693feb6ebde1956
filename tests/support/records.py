"""Records as runs write them, with made-up numbers that tell rows and columns apart."""

from pathlib import Path

from batchnorm.paper.inception.comparison import Record
from batchnorm.paper.inception.config import InceptionConfig
from batchnorm.paper.inception.jobs import Job
from batchnorm.paper.inception.settled import settled
from batchnorm.paper.inception.variants import BY_NAME


def arm_rows():
    """Return 21 measurements of each arm. The values tell arm, step and column apart."""
    return [
        {
            "step": step,
            "arm": arm,
            "loss": 1.0,
            "test_accuracy": round(best - 0.3 * 0.5 ** (step / 200), 4),
            "p15": -1 - step / 1e4 - offset,
            "p50": step / 1e4 + offset,
            "p85": 1 + step / 1e4 + offset,
        }
        for step in range(0, 2001, 100)
        for arm, best, offset in (("plain", 0.93, 0.0), ("bn", 0.98, 0.125))
    ]


def sweep_rows():
    """Return the rows of a small sweep: 2 learning rates and 2 standard deviations, with accuracy lr * std."""
    return [
        {"lr": lr, "std": std, "seed": 1, "arm": arm, "step": 50, "test_accuracy": lr * std}
        for arm in ("plain", "bn")
        for lr in (0.1, 1.0)
        for std in (0.1, 0.5)
    ]


def record(name, best, seed=1, diverged=None, evaluations=()):
    """Return a run of 1,000 steps whose top-1 rises linearly to `best`, or that ends where it diverged."""
    config = settled(InceptionConfig("fashion", seed=seed), BY_NAME[name])
    end = 1000 if diverged is None else diverged
    rows = [{"step": step, "loss": 1.0, "top1": best * step / 1000, "top5": 1.0} for step in range(0, end + 1, 100)]
    if diverged is not None:
        rows[-1] = {"step": diverged, "loss": None, "diverged": True}
    return Record(Job(BY_NAME[name], config, Path(name)), rows, list(evaluations))


def comparison():
    """Return four runs of three variants; one diverged."""
    found = [record("inception", 0.8), record("bn-x5", 0.9), record("bn-x5", 1.0, seed=2)]
    return [*found, record("inception-x5", 0.5, diverged=300)]


def longest_cells():
    """Return runs whose table cells are as long as possible: the seeds differ, miss a level, or diverge late."""
    found = [record(name, best, seed) for name in BY_NAME for seed, best in ((1, 0.9), (2, 0.5))]
    return [*found, record("inception-x5", 1.0, seed=3, diverged=900)]


def study():
    """Return a plain network, both bases and three parts of the recipe; two seeds, and one part that never arrives."""
    bests = {"inception": 0.5, "bn-baseline": 0.6, "bn-x5": 0.8, "only-rate": 0.7, "only-l2": 0.4, "keeps-rate": 0.75}
    return [record(name, best + 0.02 * (seed - 1), seed) for seed in (1, 2) for name, best in bests.items()]


def evaluation(top1, crops=1):
    """Return the row of one evaluation of bn-x5."""
    return {"name": "bn-x5", "runs": ["bn-x5, seed 1"], "crops": crops, "size": 28, "top1": top1, "top5": 1.0}


# Choices of runs that figures and tables must take, by what is particular about each.
CHOICES = {
    "no plain network": [record("bn-x5", 0.9)],
    "all diverged": [record("inception", 0.5, diverged=100), record("inception-x5", 0.5, diverged=200)],
    "ensemble": [record(f"ensemble-{number}", 0.9) for number in range(1, 7)],
}
