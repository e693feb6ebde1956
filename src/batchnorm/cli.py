"""The command `batchnorm`: typed configs to calls."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from .errors import BatchNormError

try:
    import tyro

    from .paper.console import show_mnist, show_sweep
    from .paper.mnist import MnistConfig, config_from_json, config_to_json
    from .paper.run import Run
except ModuleNotFoundError as missing:
    sys.exit(f"batchnorm: the command needs {missing.name}. Install it with: pip install 'batchnorm[paper]'")


def mnist(
    config: Annotated[MnistConfig, tyro.conf.arg(name="")],
    out: Path | None = None,
    resume: Path | None = None,
    sweep: bool = False,
) -> None:
    """Figure 1 of the Batch Normalization paper (Sec. 4.1), computed here.

    Trains 784-100-100-100-10 with sigmoids on binary MNIST twice, with and without batch normalization, from the same
    weights and on the same batches, and writes a run folder: config.json, metrics.jsonl, figure1.png and .svg, and
    report.html, which opens without a network. Ctrl-C keeps and plots what is there; --resume goes on from it.

    Args:
        config: What decides the numbers.
        out: Folder to write, new or empty; by default the first free of runs/mnist-1, runs/mnist-2, …
        resume: Go on with this run, killed or stopped, under its own settings; its records become the same, to the
            bit, as if it had never stopped.
        sweep: Train both networks at a grid of learning rates and initial standard deviations, 3 seeds each, and draw
            a heat map of their test accuracy: 210 trainings, so give fewer --steps (10000 takes some half an hour).
    """
    if resume is None:
        experiment, data = "sweep" if sweep else "mnist", config.load()
        run = Run.create(out, experiment, config_to_json(config))
    else:
        if out is not None or sweep or config != MnistConfig():
            raise BatchNormError(f"--resume {resume} goes on under that run's own settings; give no others beside it")
        run, experiment, saved = Run.open(resume)
        config = config_from_json(saved)
        data = config.load()
    show = {"mnist": show_mnist, "sweep": show_sweep}[experiment]
    show(config, data, run)


def main() -> None:
    """Run the command. An error that the user can mend is one line on stderr."""
    try:
        tyro.extras.subcommand_cli_from_dict(
            {"mnist": mnist}, prog="batchnorm", description="Batch Normalization, the whole of it, for PyTorch."
        )
    except BatchNormError as error:
        sys.exit(f"batchnorm: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
