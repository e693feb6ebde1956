"""Run an experiment with one fault, start it again, and compare what it leaves with the undisturbed run."""

import os
import shutil
import signal
import socket
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn

from matplotlib.figure import Figure
from torture.experiments import Experiment, digest
from torture.faults import FAULTS, Call, Fault, Loss, What, read_calls, watch
from torture.order import disorder
from torture.power import lose_power, name_is_synced

from batchnorm.cli.main import main
from batchnorm.paper.inception import trainer
from batchnorm.paper.training import loop
from batchnorm.paper.training.checkpoint import Checkpoint

for name in ("inception", "inception_training", "mnist", "mnist_training", "trial", "trial_training"):
    import_module(f"batchnorm.cli.{name}")  # the commands import these, which takes longer than to run

SECONDS = 120  # of one start of the command
KILLED = -signal.SIGKILL
Arm = Callable[[], None]


class Case(NamedTuple):
    """One fault at one call of an experiment."""

    experiment: str
    fault: str
    point: int
    call: str


class Undisturbed(NamedTuple):
    """A run without a fault: its calls, its digest, and the folder that it starts from."""

    calls: list[Call]
    digest: str
    start: Path | None


class Failed(Exception):
    """A run that did not end as it must."""


def record(experiment: Experiment, folder: Path) -> Undisturbed:
    """Run the experiment without a fault."""
    start = None
    if experiment.killed_at is not None:
        whole = record(experiment._replace(killed_at=None), folder / "whole")
        start = folder / "killed"
        kill = Fault(What.KILL_BEFORE)
        _begin(experiment, start, None, kill, round(len(whole.calls) * experiment.killed_at))
    statuses = _begin(experiment, folder / "undisturbed", start, Fault(What.NOTHING), 0)
    if any(statuses):
        raise Failed(f"the undisturbed run ended with {statuses}: {_said(folder / 'undisturbed')}")
    undisturbed = folder / "undisturbed"
    calls = read_calls(undisturbed / "calls")
    if found := disorder(calls):
        raise Failed(f"calls in a dangerous order: {found}")
    return Undisturbed(calls, digest(undisturbed / "watched" / "run"), start)


def cases(name: str, undisturbed: Undisturbed) -> list[Case]:
    """Return a case for each fault at each call."""
    return [
        Case(name, fault, call.number, f"{call.name} {(call.to if call.name == 'rename' else call.path).name}")
        for call in undisturbed.calls
        for fault in FAULTS
        if call.name == "write" or FAULTS[fault].what is not What.TORN
    ]


def run_case(case: Case, experiment: Experiment, undisturbed: Undisturbed, folder: Path) -> str | None:
    """Run one case in `folder`. Return what is wrong, or None."""
    fault = FAULTS[case.fault]
    try:
        statuses = _begin(experiment, folder, undisturbed.start, fault, case.point)
        _check_end(fault, statuses, _said(folder))
        watched, begun = folder / "watched", read_calls(folder / "calls")[: case.point]
        calls = begun[: case.point - 1]
        lose_power(watched, folder / "backups", calls, _before(folder), fault.loss)
        removed = {call.path.name for call in begun if call.name == "unlink"}  # of trainings that have ended
        _check_kept(watched / "run", folder / "before", calls, fault.loss, removed)
        _begin_again(experiment, folder)
        if digest(watched / "run") != undisturbed.digest:
            raise Failed("the records, the weights or the names of the files differ")
    except Exception as error:
        return f"{case}: {error if isinstance(error, Failed) else traceback.format_exc()}"
    shutil.rmtree(folder)
    return None


def _check_end(fault: Fault, statuses: list[int], said: str) -> None:
    """Check how the disturbed run ended: killed, or with one line and status 1, or well."""
    wanted = (0, 1) if fault.what in (What.FULL, What.BROKEN) else (KILLED,)
    if statuses[0] not in wanted:
        raise Failed(f"ended with {statuses}, wanted {wanted}: {said}")
    if statuses[0] == 1 and not ("batchnorm: cannot " in said and "Traceback" not in said):
        raise Failed(f"ended without its one line: {said}")
    if any(status not in (0, 1) for status in statuses[1:]):
        raise Failed(f"the other process ended with {statuses[1:]}: {said}")


def _check_kept(run: Path, before: Path, calls: list[Call], loss: Loss, removed: set[str]) -> None:
    """Check that each training has the step of its newest whole checkpoint: the run saves one at every step."""
    saved = Counter(
        call.to.name
        for call in calls
        if call.name == "rename" and call.path.suffix == ".partial" and call.to.suffix == ".pt"
        if loss is not Loss.NAMES or name_is_synced(call, calls)
    )
    for name, steps in saved.items():
        if name in removed:
            continue
        wanted, found = steps + _step(before / name), _step(run / name)
        if found < wanted:
            raise Failed(f"{name} is at step {found}, wanted {wanted}")


def _step(checkpoint: Path) -> int:
    return (Checkpoint(checkpoint).load() or {"step": 0})["step"]


def _begin(experiment: Experiment, folder: Path, start: Path | None, fault: Fault, point: int) -> list[int]:
    """Start the command below the watched folder, from a copy of a killed run if `start` has one."""
    watched, run = folder / "watched", folder / "watched" / "run"
    (folder / "backups").mkdir(parents=True)
    watched.mkdir()
    arguments = [*experiment.arguments, "--out", str(run)]
    if start is not None:
        shutil.copytree(start / "watched" / "run", run)
        shutil.copytree(run, folder / "before", copy_function=os.link)
        arguments = [experiment.arguments[0], "--resume", str(run)]

    def arm() -> None:
        watch(watched, folder / "calls", folder / "backups", fault.what, point)

    return _start(experiment.ranks, arguments, folder, arm)


def _begin_again(experiment: Experiment, folder: Path) -> None:
    """Start the command again: torchrun with the same arguments, a person with --resume if there is a run."""
    run = folder / "watched" / "run"
    arguments = [*experiment.arguments, "--out", str(run)]
    if experiment.ranks == 1 and (run / "config.json").exists():
        arguments = [experiment.arguments[0], "--resume", str(run)]
    statuses = _start(experiment.ranks, arguments, folder, None, TORCHELASTIC_RESTART_COUNT="1")
    if any(statuses):
        raise Failed(f"ended again, with {statuses}: {_said(folder)}")


def _before(folder: Path) -> dict[int, int]:
    return {path.stat().st_ino: path.stat().st_size for path in (folder / "before").glob("*")}


def _said(folder: Path) -> str:
    return (folder / "output").read_text(errors="replace")[-2000:]


def _start(ranks: int, arguments: list[str], folder: Path, arm: Arm | None, **environment: str) -> list[int]:
    """Run the command in forked processes. Call `arm` in the first. Return the exit statuses, negative for signals."""
    if ranks > 1:
        environment |= {"MASTER_ADDR": "localhost", "MASTER_PORT": _free_port(), "WORLD_SIZE": str(ranks)}
        environment["LOCAL_WORLD_SIZE"] = environment["WORLD_SIZE"]
    processes = []
    for rank in range(ranks):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
        process = os.fork()
        if process == 0:
            _run_command(arguments, folder / "output", arm if rank == 0 else None, environment | own)
        processes.append(process)
    end = time.monotonic() + SECONDS
    return [_wait(process, end) for process in processes]


def _run_command(arguments: list[str], output: Path, arm: Arm | None, environment: dict[str, str]) -> NoReturn:
    status = 70
    try:
        with output.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.environ.update(environment)
        sys.argv = ["batchnorm", *arguments]
        loop.CHECKPOINT_SECONDS = -1.0  # A checkpoint after each step.
        trainer.STATISTICS_BATCHES = 1
        Figure.savefig = _save_nothing  # pyright: ignore[reportAttributeAccessIssue]
        if arm is not None:
            arm()
        main()
        status = 0
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        status = error.code if isinstance(error.code, int) else int(bool(error.code))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _save_nothing(_: Figure, file: BinaryIO, **__: object) -> None:
    """Write a picture without drawing it, which would take most of the time."""
    file.write(b"a picture")


def _wait(process: int, end: float) -> int:
    while time.monotonic() < end:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    raise Failed(f"did not end within {SECONDS} s")


def _free_port() -> str:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return str(found.getsockname()[1])
