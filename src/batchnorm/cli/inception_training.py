"""Train the networks of Sec. 4.2 into their run folders, under a progress bar."""

from __future__ import annotations

from functools import lru_cache
from threading import Event

from ..escape import printable
from ..paper.images.sources import open_both
from ..paper.inception.jobs import Job
from ..paper.inception.records import TrainingFields
from ..paper.inception.trainer import Trainer, run_variant
from ..paper.show.inception_terminal import training_bar
from ..paper.training.processes import Processes
from ..paper.training.run import Run
from ..paper.training.signals import stop_on_signal


def train_jobs(jobs: list[Job], processes: Processes) -> bool:
    """Train the jobs one after another. Return True if all are finished, False after Ctrl-C or SIGTERM.

    A signal ends the training at its next step, with a checkpoint.

    Raises:
        BatchNormError: too many images are damaged, or another process writes the run.
        StorageError: a run folder cannot be written.
    """
    open_once = lru_cache(maxsize=1)(open_both)  # the jobs of one command have the same images
    with stop_on_signal() as stop:
        for job in jobs:
            if not stop.is_set():
                images = open_once(job.config.data, job.index)
                _train(job, Trainer(job.config, job.variant, *images, processes), stop)
    return not stop.is_set()


def _train(job: Job, trainer: Trainer, stop: Event) -> None:
    """Train one job. Rank 0 alone writes the run and shows its progress."""
    if trainer.processes.rank > 0:
        run_variant(trainer, None, stop)
        return
    run = Run(job.folder)
    print(f"Run folder: {printable(run.folder)}", flush=True)
    done = max((row["step"] for row in run.rows(TrainingFields)), default=0)
    images_per_step = job.config.batch_size * trainer.processes.world_size
    with run.claimed(), training_bar(job, done, images_per_step) as bar:
        run_variant(trainer, run, stop, bar.report, bar.progress)
