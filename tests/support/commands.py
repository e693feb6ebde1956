"""Start commands in processes forked from one with all imports done: a new interpreter takes seconds."""

import multiprocessing
import os
import sys
import time
from importlib import import_module
from multiprocessing import forkserver
from pathlib import Path

from torch.multiprocessing.spawn import start_processes

FORKSERVER = multiprocessing.get_context("forkserver")
COMMANDS = [f"batchnorm.cli.{name}{part}" for name in ("inception", "mnist", "trial") for part in ("", "_training")]
FORKSERVER.set_forkserver_preload([*COMMANDS, "torch.distributed.run"])


def preload():
    """Start importing in the background."""
    forkserver.ensure_running()


def start(*arguments, module="batchnorm.cli.main", output=os.devnull, cwd=".", checkpoint_seconds=None, **environment):
    """Start `module` with these arguments, as the command line does.

    Append its output to the file `output`. Save checkpoints after `checkpoint_seconds`, if the command has no option.
    """
    given = (module, list(map(str, arguments)), Path(output).absolute(), Path(cwd).absolute())
    process = FORKSERVER.Process(target=_run, args=(*given, checkpoint_seconds, environment))
    process.start()
    return process


def run_ranks(function, *arguments, processes=2):
    """Run `function(rank, *arguments)` in some processes to the end. Raise what one raised."""
    start_processes(function, arguments, nprocs=processes, start_method="forkserver")


def wait_for_rows(is_alive, folder, rows):
    """Wait until the run has `rows` records, or its process is dead."""
    path = folder / "metrics.jsonl"
    while is_alive() and (not path.exists() or path.read_text().count("\n") < rows):
        time.sleep(0.02)


def _run(module, arguments, output, cwd, checkpoint_seconds, environment):
    os.environ.update(environment)
    if checkpoint_seconds is not None:
        from batchnorm.paper.training import loop

        loop.CHECKPOINT_SECONDS = checkpoint_seconds
    os.chdir(cwd)
    sys.argv = [module, *arguments]
    sys.stdout.flush()
    with output.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import_module(module).main()
    sys.stdout.flush()
