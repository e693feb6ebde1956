"""Kill and fail every write once: python -m torture --help, with tests/ in PYTHONPATH."""

import argparse
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from torture.faults import Call, build

if TYPE_CHECKING:
    from torture.experiments import Experiment
    from torture.harness import Case, Undisturbed

LOADED = "TORTURE_LIBRARY"  # set in the process that has the library


def main() -> int:
    """Run the cases in a process with the library. Return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, help="run so many cases of each experiment, the same every time")
    parser.add_argument("--only", help="run this experiment alone")
    parser.add_argument("--call", default="", help="run the cases whose call contains this, such as 'rename check'")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    if LOADED in os.environ:
        return run(options)
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        library = Path(folder) / "faults.so"
        build(library)
        environment = os.environ | {LOADED: folder, "LD_PRELOAD": str(library)}
        command = [sys.executable, "-m", "torture", *sys.argv[1:]]
        return subprocess.run(command, env=environment, check=False).returncode


def run(options: argparse.Namespace) -> int:
    """Run the cases and print their count. Return 1 if one failed."""
    from torture.experiments import make_experiments
    from torture.harness import cases, record

    folder, began = Path(os.environ[LOADED]), time.monotonic()
    experiments = make_experiments(folder)
    if options.only:
        experiments = {options.only: experiments[options.only]}
    references, chosen = {}, []
    for number, (name, experiment) in enumerate(experiments.items()):
        references[name] = record(experiment, folder / f"reference-{number}")
        found = [case for case in cases(name, references[name]) if options.call in case.call]
        print(f"{name}: {_summary(references[name].calls)}; {len(found)} cases", flush=True)
        chosen += found if options.sample is None else _sample(found, options.sample)
    jobs = [
        (case, experiments[case.experiment], references[case.experiment], folder / f"case-{number}")
        for number, case in enumerate(chosen)
    ]
    with multiprocessing.get_context("fork").Pool(options.jobs, maxtasksperchild=50) as pool:
        faults = []
        for done, fault in enumerate(pool.imap_unordered(_run, jobs), 1):
            if fault is not None:
                faults.append(fault)
                print(fault, flush=True)
            if done % 100 == 0:
                print(f"{done} of {len(jobs)} cases, {len(faults)} failed", flush=True)
    print(f"{len(jobs)} cases, {len(faults)} failed, {time.monotonic() - began:.0f} s")
    return int(bool(faults))


def _sample(found: "list[Case]", size: int) -> "list[Case]":
    """Return the same cases every time, and another file or kind of call in each as long as there is one."""
    seen, turns = Counter(), []
    for case in random.Random(0).sample(found, len(found)):
        turns.append((seen[case.call], len(turns), case))
        seen[case.call] += 1
    return [case for *_, case in sorted(turns)[:size]]


def _run(job: "tuple[Case, Experiment, Undisturbed, Path]") -> str | None:
    from torture.harness import run_case

    return run_case(*job)


def _summary(calls: list[Call]) -> str:
    kinds = Counter(call.name for call in calls)
    return f"{len(calls)} calls ({', '.join(f'{count} {kind}' for kind, count in kinds.items())})"


if __name__ == "__main__":
    sys.exit(main())
