"""`batchnorm inception`: train the networks of Sec. 4.2."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, get_args

import tyro

from ..escape import printable
from ..memory import keep_memory
from ..paper.inception.config import InceptionConfig, VariantName
from .kernels import warn_without_kernels

VARIANT = f"The network, one of: {', '.join(get_args(VariantName))}. Leave it out with --resume."


def command(
    config: Annotated[InceptionConfig, tyro.conf.arg(name="")],
    variant: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[VARIANT]", help=VARIANT)] = None,
    small: bool = False,
    out: Path | None = None,
    resume: Path | None = None,
) -> None:
    """Train Inception and its batch-normalized variants (Sec. 4.2).

    Train one variant, the seven of the comparison ("all"), the six of the ensemble ("ensemble"), or the parts of the
    recipe ("recipe"), on ImageNet or on smaller images. Each variant gets a run folder with config.json, metrics.jsonl
    and its two newest checkpoints. Ctrl-C stops with a checkpoint.

        batchnorm inception all --data fashion
        batchnorm inception recipe --data cifar10
        batchnorm inception all --data /data/small-images --small
        batchnorm inception bn-x30 --data /data/imagenet
        batchnorm inception --resume runs/inception-1
        torchrun --nproc-per-node 8 -m batchnorm inception bn-x30 --data /data/imagenet --out runs/x30

    Under torchrun every process normalizes its own mini-batch, as in the paper, and the gradients are averaged. It
    needs --out: with --max-restarts, torchrun restarts a dead process, and the run in that folder continues.

    Args:
        config: The settings that decide the numbers.
        variant: The name of a variant.
        small: Take the small network and the settings of cifar10, for a folder of small images.
        out: Folder for the results, new or empty. By default runs/inception-1, or the next free number.
        resume: Continue this run, or all runs in this folder, with their own settings.
            On the CPU, with as many processes, the records become the same, to the bit, as without the stop.
    """
    import torch

    from ..paper.inception.jobs import choose_jobs
    from ..paper.inception.presets import with_small_network
    from ..paper.training.processes import cores_each, joined
    from .inception_training import train_jobs

    warn_without_kernels()
    keep_memory()
    if small:
        config = with_small_network(config)
    with joined() as processes:
        jobs = processes.share(lambda: choose_jobs(variant, config, out, resume))
        torch.set_num_threads(jobs[0].config.threads or cores_each())
        finished = train_jobs(jobs, processes)
        if not finished and processes.rank == 0:
            folder = jobs[0].folder if len(jobs) == 1 else jobs[0].folder.parent
            print(f"Stopped early. Continue with: batchnorm inception --resume {printable(folder)}")
    if not finished:
        sys.exit(130)  # the status of Ctrl-C, so that a shell does not run what follows &&
