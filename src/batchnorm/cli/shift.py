"""`batchnorm shift`: a look at why batch normalization helps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from ..errors import BatchNormError
from ..memory import keep_memory
from ..paper.inception.shift.config import ShiftConfig
from .kernels import warn_without_kernels


def command(
    config: Annotated[ShiftConfig, tyro.conf.arg(name="")], out: Path | None = None, resume: Path | None = None
) -> None:
    """Look at why batch normalization helps: the internal covariate shift of the paper, measured.

    Train the small Inception with and without BN on the same mini-batches, and measure every layer of both at the same
    steps: the drift of mean and spread over one step, the largest stable learning rate, and the dead feature maps. The
    run folder gets config.json, three files of rows, shift.png and shift.svg. Ctrl-C stops, and --resume continues.

        batchnorm shift --data cifar10
        batchnorm shift --data /data/small-images --seeds 1 --out runs/look

    Args:
        config: The settings that decide the numbers.
        out: Folder for the results, new or empty. By default runs/shift-1, or the next free number.
        resume: Continue this run with its own settings.
    """
    import torch

    from ..paper.images.sources import open_both
    from ..paper.inception.shift.experiment import create_run
    from ..paper.inception.shift.records import open_shift
    from ..paper.training.processes import cores_each
    from .shift_training import look

    warn_without_kernels()
    keep_memory()
    if resume is not None:
        if out is not None or config != ShiftConfig():
            raise BatchNormError(f"--resume {resume} continues with that run's own settings; give no others beside it")
        run, config, _ = open_shift(resume)
        images = open_both(config.data)
    elif not config.data:
        raise BatchNormError("name the images: --data FOLDER, fashion or cifar10")
    else:
        images = open_both(config.data)
        run = create_run(config, images[0], out)
    torch.set_num_threads(config.threads or cores_each())
    with run.claimed():
        look(config, images, run)
