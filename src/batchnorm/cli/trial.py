"""`batchnorm trial`: a network of your own with and without batch normalization."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ..errors import BatchNormError
from ..memory import keep_memory
from ..paper.trial.config import TrialConfig
from .kernels import warn_without_kernels

if TYPE_CHECKING:
    from ..paper.trial.prepare import Given, Names

Network = Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[MODULE:FACTORY]")]


def command(
    config: Annotated[TrialConfig, tyro.conf.arg(name="")],
    target: Network = None,
    data: str | None = None,
    eval_data: str | None = None,
    loss: str | None = None,
    metric: str | None = None,
    out: Path | None = None,
    resume: Path | None = None,
) -> None:
    """Train a network of your own with and without batch normalization, and tell whether it helps.

    All contenders start from the same weights and see the same mini-batches: the network with BN at 1, 5 and 30 times
    --lr, and without at a fifth of it too. A network that has BN already is compared with itself without. The run
    folder gets config.json, metrics.jsonl, figure2.png, figure2.svg and report.html, a page that opens offline. Ctrl-C
    stops with a checkpoint, and --resume continues.

        batchnorm trial mine:network --data mine:batches --lr 0.05
        batchnorm trial mine:network --data mine:batches --loss torch.nn:L1Loss --steps 2000 --out runs/l1
        batchnorm trial --resume runs/trial-1

    Args:
        config: The settings that decide the numbers.
        target: Factory of the network, called without arguments once for each training. Leave it out with --resume.
        data: MODULE:FACTORY of (input, target) batches. One in five is held out, unless there is --eval-data.
        eval_data: MODULE:FACTORY of held-out batches.
        loss: MODULE:FACTORY of a function of (output, target). By default cross-entropy, or the mean squared error.
        metric: MODULE:FACTORY of a function of (output, target); higher is better. By default accuracy, or the loss.
        out: Folder for the results, new or empty. By default runs/trial-1, or the next free number.
        resume: Continue this run with its own settings. The records become the same, to the bit, as without the stop.
    """
    from ..paper.training.settings import check_settings
    from ..paper.trial.prepare import Names, check_same, create, prepare, reopen
    from .trial_training import train_trial

    warn_without_kernels()
    keep_memory()
    given = (target, data, eval_data, loss, metric)
    if resume is not None:
        if any(each is not None for each in (*given, out)) or config != TrialConfig():
            raise BatchNormError(f"--resume {resume} continues with that run's own settings; give no others beside it")
        run, saved = reopen(resume)
        names, config = Names(*(getattr(saved, name) for name in Names._fields)), _choices(saved)
        subject, settings = prepare(_make(names), names, config)
        check_same(settings, saved, run)
    else:
        if target is None or data is None:
            raise BatchNormError("wanted a network and its batches: batchnorm trial mine:network --data mine:batches")
        check_settings(config)
        names = Names(target, data, eval_data, loss, metric)
        subject, settings = prepare(_make(names), names, config)
        run = create(settings, out)
    with run.claimed():
        train_trial(subject, settings, run)


def _make(names: Names) -> Given:
    """Return the network's factory, and what the other factories make."""
    from ..paper.trial.contenders import seeded
    from ..paper.trial.prepare import Given
    from .factory import make, make_batches, make_model

    with seeded(0):  # some factories make random data
        batches = make_batches(names.data)
        eval_batches = None if names.eval_data is None else make_batches(names.eval_data)
        loss, metric = (None if name is None else make(name) for name in (names.loss, names.metric))
    return Given(lambda: make_model(names.network, None), batches, eval_batches, loss, metric)


def _choices(saved: TrialConfig) -> TrialConfig:
    """Return what the caller of a saved run chose."""
    return TrialConfig(**{field.name: getattr(saved, field.name) for field in fields(TrialConfig)})
