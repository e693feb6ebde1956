"""The command `batchnorm`: its parser.

Help and --version must not import torch. So each command imports what it needs when it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from importlib.metadata import version
from typing import Any

from .. import __version__
from ..errors import did_you_mean
from ..escape import printable
from .ending import one_line_errors

COMMANDS = (
    "mnist",
    "inception",
    "evaluate",
    "report",
    "shift",
    "fold",
    "insert",
    "recalibrate",
    "doctor",
    "trial",
)  # a module each
DESCRIPTION = """Batch Normalization, the whole of it, for PyTorch.

mnist, inception, evaluate and report reproduce the paper. shift looks at why batch normalization helps. fold, insert
and recalibrate change a network of your own.
doctor says why one misbehaves, and changes nothing. trial trains it with and without batch normalization.
Each command explains itself: batchnorm fold --help. --version prints what is installed.
"""


def main() -> None:
    """Run the command line. Whatever is raised ends it with one line on stderr and an exit status."""
    with one_line_errors():
        if sys.argv[1:] == ["--version"]:
            print(f"batchnorm {__version__}, torch {version('torch')}")
        else:
            _run()


def _run() -> None:
    """Parse the arguments and call the command that they name. Without a command, explain all of them."""
    import tyro  # of the extra `cli`; --version does without it

    name, *arguments = sys.argv[1:] or [""]
    escaped = list(map(printable, arguments))
    if name in COMMANDS:
        command, prog = _command(name), f"batchnorm {name}"
        if escaped != arguments:  # tyro prints what it refuses: let it refuse an escaped one
            tyro.cli(wraps(command)(lambda *_args, **_options: None), prog=prog, args=escaped)
        tyro.cli(command, prog=prog, args=arguments, config=(tyro.conf.DisallowNone,))
    elif name and not name.startswith("-"):
        known = ", ".join(COMMANDS)
        line = f"batchnorm: there is no command {name!r}; wanted one of {known}{did_you_mean(name, COMMANDS)}"
        print(printable(line), file=sys.stderr)
        sys.exit(2)  # as for every line that the parser refuses
    else:
        summaries = {name: _summarized(_command(name)) for name in COMMANDS}
        given = [printable(name), *escaped] if name else []
        tyro.extras.subcommand_cli_from_dict(summaries, prog="batchnorm", description=DESCRIPTION, args=given)


def _command(name: str) -> Callable[..., None]:
    return import_module(f".{name}", __package__).command


def _summarized(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command with the first line of its help alone."""

    @wraps(command)
    def summarized(*args: Any, **options: Any) -> None:
        command(*args, **options)

    summarized.__doc__ = (command.__doc__ or "").partition("\n")[0]
    return summarized
