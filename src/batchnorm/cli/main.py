"""The command `batchnorm`: its parser, and the one place where errors become one line.

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
from ..errors import Failure
from .extras import EXTRAS, how_to_install

COMMANDS = ("mnist", "inception", "evaluate", "report", "fold", "insert", "recalibrate")  # a module each
DESCRIPTION = """Batch Normalization, the whole of it, for PyTorch.

mnist, inception, evaluate and report reproduce the paper. fold, insert and recalibrate change a network of your own.
Each command explains itself: batchnorm fold --help. --version prints what is installed.
"""


def main() -> None:
    """Run the command line. Print an expected error as one line on stderr, and exit with status 1."""
    if sys.argv[1:] == ["--version"]:
        print(f"batchnorm {__version__}, torch {version('torch')}")
        return
    try:
        _run()
    except Failure as error:
        sys.exit(f"batchnorm: {error}")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        sys.exit(f"batchnorm: this command needs {package}. Install it with: {how_to_install(package)}")
    except KeyboardInterrupt:
        sys.exit(130)


def _run() -> None:
    """Parse the arguments and call the command that they name. Without a command, explain all of them."""
    import tyro  # of the extra `cli`; --version does without it

    name, *arguments = sys.argv[1:] or [""]
    if name in COMMANDS:
        tyro.cli(_command(name), prog=f"batchnorm {name}", args=arguments)
    else:
        summaries = {name: _summarized(_command(name)) for name in COMMANDS}
        tyro.extras.subcommand_cli_from_dict(summaries, prog="batchnorm", description=DESCRIPTION)


def _command(name: str) -> Callable[..., None]:
    return import_module(f".{name}", __package__).command


def _summarized(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command with the first line of its help alone."""

    @wraps(command)
    def summarized(*args: Any, **options: Any) -> None:
        command(*args, **options)

    summarized.__doc__ = (command.__doc__ or "").partition("\n")[0]
    return summarized
