"""Run the recorded experiment of Sec. 4.2 on CIFAR-10: its parts, in their order of importance.

DATA is cifar10, or a folder of small images with train and val. Runs train in parallel, one per core. Stop the command
at any time, and start it again to resume. FOLDER/STEPS holds the runs of one length.

    python tools/inception_cifar10.py FOLDER DATA sweep variants recipe ensemble evaluate
    python tools/inception_cifar10.py FOLDER DATA rates --steps 3000

- sweep: the plain network at several learning rates. The other parts take its best, unless --lr gives one.
- variants: the seven of the comparison, at every seed.
- recipe: each part of the recipe alone, then all without it, at every seed.
- rates: BN-x5 and BN-x30 alone, at every seed.
- ensemble: its six members, each once with its own seed.
- evaluate: one crop of every run of the variants, and the ensemble by one crop and by 144.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

SWEEP = (0.02, 0.04, 0.01, 0.08)
VARIANTS = ("inception", "bn-baseline", "bn-x5", "bn-x30", "bn-x5-sigmoid", "inception-x5", "inception-sigmoid")
# The small network has no LRN, so the two variants about it would repeat BN-baseline and BN-x5 to the bit.
CHANGES = ("rate", "no-dropout", "l2", "decay", "shuffling", "distortions")
RECIPE = (*(f"only-{change}" for change in CHANGES), *(f"keeps-{change.removeprefix('no-')}" for change in CHANGES))
ENSEMBLE = tuple(f"ensemble-{number}" for number in range(1, 7))
IMAGES = 50_000
DECAYS = 16  # of the plain network's learning rate in a run, as in records/inception-fashion; 96 with the recipe
MEASUREMENTS = 24


class Job(NamedTuple):
    """One run: its folder, variant, plain network's learning rate, seed and steps."""

    folder: Path
    variant: str
    lr: float
    seed: int
    steps: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("data")
    parser.add_argument("parts", nargs="+", choices=("sweep", "variants", "recipe", "rates", "ensemble", "evaluate"))
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--lr", type=float, help="base learning rate of all variants; by default the sweep's best")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    given = parser.parse_args()
    folder = given.folder / str(given.steps)
    succeeded = True
    if "sweep" in given.parts:
        succeeded &= train_all(sweep(folder, given.steps), given.data, given.processes)
    jobs = chosen_jobs(folder, given.parts, given.lr or best_rate(folder), given.seeds, given.steps)
    succeeded &= train_all(jobs, given.data, given.processes)
    if "evaluate" in given.parts:
        evaluate(folder, given.data)
    sys.exit(0 if succeeded else 1)


def sweep(folder: Path, steps: int) -> list[Job]:
    """Return a job of the plain network for each learning rate."""
    return [Job(folder / "sweep" / f"lr-{lr:g}", "inception", lr, 1, steps) for lr in SWEEP]


def best_rate(folder: Path) -> float:
    """Return the learning rate of the sweep whose run ended with the best top-1."""
    last = {lr: rows(folder / "sweep" / f"lr-{lr:g}")[-1].get("top1") or 0.0 for lr in SWEEP}
    print("sweep:", ", ".join(f"{lr:g}: {top1:.1%}" for lr, top1 in sorted(last.items())), flush=True)
    return max(last, key=lambda lr: last[lr])


def chosen_jobs(folder: Path, parts: Sequence[str], lr: float, seeds: Sequence[int], steps: int) -> list[Job]:
    """Return the jobs of the parts, in the parts' order."""
    names = {"variants": VARIANTS, "recipe": RECIPE, "rates": ("bn-x5", "bn-x30")}
    jobs = []
    for part in parts:
        if part == "ensemble":
            members = enumerate(ENSEMBLE, start=11)
            jobs += [Job(folder / "ensemble" / name, name, lr, seed, steps) for seed, name in members]
        else:
            each = [(seed, name) for seed in seeds for name in names.get(part, ())]
            jobs += [Job(folder / f"seed-{seed}" / name, name, lr, seed, steps) for seed, name in each]
    return jobs


def train_all(jobs: Sequence[Job], data: str, processes: int) -> bool:
    """Train the jobs. Return True if all succeeded."""
    with ThreadPoolExecutor(processes) as pool:
        try:
            return all(list(pool.map(lambda job: train(job, data), jobs)))
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)  # Ctrl-C has also interrupted the runs, which can be resumed
            raise


def train(job: Job, data: str) -> bool:
    """Train or resume one run in a process of its own. Return True if it succeeded."""
    found = rows(job.folder)
    if found and (found[-1].get("diverged") or found[-1]["step"] == job.steps):
        return True
    resumed = (job.folder / "config.json").exists()
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    succeeded = run("inception", *(["--resume", str(job.folder)] if resumed else options(job, data)), log=job.folder)
    print(f"{job.folder}: {'ended' if succeeded else 'FAILED, see its log'}", flush=True)
    return succeeded


def options(job: Job, data: str) -> list[str]:
    """Return the options of a new run. The decays are scaled to its length."""
    decay_every = job.steps * 32 / IMAGES / DECAYS
    return [
        job.variant, "--data", data, *([] if data == "cifar10" else ["--small"]), "--lr", f"{job.lr:g}",
        "--decay-every", f"{decay_every:g}", "--seed", str(job.seed), "--steps", str(job.steps),
        "--eval-every", str(job.steps // MEASUREMENTS), "--threads", "1", "--workers", "0",
        "--checkpoint-minutes", "1", "--out", str(job.folder),
    ]  # fmt: skip


def rows(folder: Path) -> list[dict]:
    """Return the measurements of a run, or none before it has begun."""
    file = folder / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def evaluate(folder: Path, data: str) -> None:
    """Evaluate the variants by one crop, and the ensemble by one crop and by 144. Skip what is evaluated already."""
    for part in sorted(folder.glob("seed-*")):
        for network in (part / name for name in VARIANTS):
            if network.exists() and not (network / "evaluations.jsonl").exists():
                run("evaluate", str(network), "--data", data, "--workers", "0", log=network)
    ensemble = folder / "ensemble"
    if ensemble.exists() and not (ensemble / ENSEMBLE[0] / "evaluations.jsonl").exists():
        for crops in ("1", "144"):
            run("evaluate", str(ensemble), "--data", data, "--crops", crops, "--workers", "0", log=ensemble)


def run(*command: str, log: Path) -> bool:
    """Run a command of batchnorm, with its output in a log file. Return True if it succeeded."""
    with log.with_name(f"{log.name}.log").open("a") as file:
        done = subprocess.run([sys.executable, "-m", "batchnorm", *command], stdout=file, stderr=file)
    return done.returncode == 0


if __name__ == "__main__":
    main()
