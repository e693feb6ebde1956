"""`batchnorm mnist`: Figure 1 of the paper."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ..errors import BatchNormError
from ..memory import keep_memory
from ..paper.mnist.config import MnistConfig, config_to_json
from .kernels import warn_without_kernels

if TYPE_CHECKING:
    from ..paper.training.run import Run


def command(
    config: Annotated[MnistConfig, tyro.conf.arg(name="")],
    out: Path | None = None,
    resume: Path | None = None,
    sweep: bool = False,
) -> None:
    """Compute Figure 1 of the Batch Normalization paper (Sec. 4.1).

    Train a 784-100-100-100-10 network with sigmoids on binary MNIST twice: with and without batch normalization. Both
    networks start from the same weights and see the same mini-batches. The run folder gets config.json, metrics.jsonl,
    figure1.png, figure1.svg and report.html, a page that opens offline. Ctrl-C stops and draws what was measured so
    far. --resume continues.

        batchnorm mnist
        batchnorm mnist --steps 5000 --seed 2 --out runs/short
        batchnorm mnist --resume runs/mnist-1
        batchnorm mnist --sweep --steps 10000

    Args:
        config: The settings that decide the numbers.
        out: Folder for the results, new or empty. By default runs/mnist-1, or the next free number.
        resume: Continue this run with its own settings. The records become the same, to the bit, as without the stop.
        sweep: Train both networks at 35 pairs of learning rate and initial standard deviation, with 3 seeds each.
            Draw their test accuracy as a heat map. The seeds start at --seed.
            These are 210 trainings, so lower --steps: 10000 take about half an hour.
    """
    from ..paper.mnist.experiment import load_data
    from ..paper.mnist.sweep import check_sweep
    from ..paper.training.run import Run
    from ..paper.training.settings import digest
    from .mnist_training import train_arms, train_sweep

    warn_without_kernels()
    keep_memory()
    if resume is not None:
        if out is not None or sweep or config != MnistConfig():
            raise BatchNormError(f"--resume {resume} continues with that run's own settings; give no others beside it")
        run, experiment, config = _open(resume)
        data = load_data(config)
    else:
        if sweep:
            check_sweep(config)
        data = load_data(config)
        experiment = "sweep" if sweep else "mnist"
        run = Run.create(out, experiment, config_to_json(config), digest(config, experiment))
    train = train_sweep if experiment == "sweep" else train_arms
    with run.claimed():
        train(config, data, run)


def _open(folder: Path) -> tuple[Run, str, MnistConfig]:
    """Return the run in `folder`, its experiment and its settings."""
    from ..paper.training.run import Run
    from ..paper.training.settings import saved_settings

    run, experiment, saved = Run.open(folder)
    if experiment not in ("mnist", "sweep"):
        raise BatchNormError(f"{folder} is a run of {experiment!r}; batchnorm mnist resumes its own")
    return run, experiment, saved_settings(MnistConfig, saved, run.config, experiment)
