"""Tiny runs of batchnorm inception, in this process or by the command."""

from dataclasses import replace
from threading import Event

from batchnorm.paper.images.sources import open_both
from batchnorm.paper.inception.config import InceptionConfig
from batchnorm.paper.inception.jobs import CHECKPOINT, new_jobs
from batchnorm.paper.inception.settled import settled
from batchnorm.paper.inception.trainer import Trainer, run_variant
from batchnorm.paper.training.processes import ALONE
from batchnorm.paper.training.run import Run

TINY = InceptionConfig(
    steps=12, eval_every=6, size=28, width=1 / 8, modules=("3c", "5b"), lr=0.02, batch_size=16, workers=0, threads=1
)


def no_progress(*_):
    """Show nothing."""


def make_trainer(variant, data, **changes):
    """Return a trainer of `variant` on one process, under TINY with these changes."""
    return Trainer(settled(replace(TINY, data=data, **changes), variant), variant, *open_both(data), ALONE)


def train(folder, variant, config):
    """Train `variant` in this process. Return its run."""
    (job,) = new_jobs(variant.name, config, folder)
    return resume(job)


def resume(job, stop=None, progress=None):
    """Train a job in this process, from its checkpoint if it has one. Return its run."""
    run = Run(job.folder)
    trainer = Trainer(job.config, job.variant, *open_both(job.config.data, job.index), ALONE)
    run_variant(trainer, run, stop or Event(), progress=progress)
    return run


def load_checkpoint(run):
    """Return the newest state of the run."""
    state = run.checkpoint(CHECKPOINT).load()
    assert state is not None
    return state


def assert_same_bits(run, other):
    """Check that both runs have the same records and weights. Only `waited` may differ, since it is measured time."""
    assert _without_times(run) == _without_times(other)
    ours, theirs = load_checkpoint(run), load_checkpoint(other)
    assert ours["step"] == theirs["step"]
    for name, value in ours["model"].items():
        assert value.equal(theirs["model"][name]), name


def _without_times(run):
    return [{name: value for name, value in row.items() if name != "waited"} for row in run.rows()]


def options(data, out, steps=TINY.steps):
    """Return the command line options that TINY stands for."""
    given = {
        "steps": steps,
        "eval-every": TINY.eval_every,
        "size": TINY.size,
        "width": TINY.width,
        "lr": TINY.lr,
        "batch-size": TINY.batch_size,
    }
    flags = [part for name, value in given.items() for part in (f"--{name}", value)]
    return [*flags, "--modules", "3c", "5b", "--workers", 0, "--threads", 1, "--data", data, "--out", out]
