"""Start commands in processes forked from one with all imports done: a new interpreter takes seconds."""

import multiprocessing
import os
import sys
from importlib import import_module
from multiprocessing import forkserver
from pathlib import Path

FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(
    ["batchnorm.cli.inception", "batchnorm.cli.inception_training", "torch.distributed.run"]
)


def preload():
    """Start importing in the background."""
    forkserver.ensure_running()


def start(*arguments, module="batchnorm.cli.main", output=os.devnull, **environment):
    """Start `module` with these arguments, as the command line does. Append its output to the file `output`."""
    process = FORKSERVER.Process(target=_run, args=(module, list(map(str, arguments)), str(output), environment))
    process.start()
    return process


def _run(module, arguments, output, environment):
    os.environ.update(environment)
    sys.argv = [module, *arguments]
    sys.stdout.flush()
    with Path(output).open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import_module(module).main()
    sys.stdout.flush()
