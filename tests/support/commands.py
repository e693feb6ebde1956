"""Commands in processes of their own, forked from one that has imported everything: a new interpreter takes seconds."""

import multiprocessing
import os
import sys
from importlib import import_module
from multiprocessing import forkserver
from pathlib import Path

FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["batchnorm.cli.main", "batchnorm.paper.show.progress", "torch.distributed.run"])


def prepare():
    """Begin to import; what runs meanwhile need not wait for it."""
    forkserver.ensure_running()


def started(*arguments, module="batchnorm.cli.main", output=os.devnull, **environment):
    """`module` with these arguments, as the command line would run it; what it prints goes to the file `output`."""
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
