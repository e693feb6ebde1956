"""Check what a trial is given before anything is written, and open its run folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ...errors import BatchNormError
from ..training.run import Run
from ..training.settings import digest, json_values, saved_settings
from ..training.validation import shown
from .config import TrialConfig, TrialSettings
from .contenders import Networks, seeded
from .data import copied, digest_of, examples, read_data
from .experiment import EXPERIMENT, Subject
from .scoring import Function, make_scoring


class Given(NamedTuple):
    """What a caller gives: a network's factory and batches. The rest is None for the defaults."""

    network: Callable[[], nn.Module]
    batches: Iterable[Any]
    eval_batches: Iterable[Any] | None = None
    loss: Function | None = None
    metric: Function | None = None


class Names(NamedTuple):
    """Where the given things are from: MODULE:FACTORY, or a name for the reader."""

    network: str
    data: str
    eval_data: str | None = None
    loss: str | None = None
    metric: str | None = None


class Prepared(NamedTuple):
    """What a trial is of, and the settings of its run."""

    subject: Subject
    settings: TrialSettings


def prepare(given: Given, names: Names, config: TrialConfig) -> Prepared:
    """Read the batches, and try both networks on them.

    Raises:
        BatchNormError: the factory returns no network, or one without parameters to train; the batches are no (input,
            target); a network, the loss or the metric does not run on them; or the network cannot be traced.
    """
    if isinstance(given.network, nn.Module) or not callable(given.network):
        got = type(given.network).__name__
        raise BatchNormError(f"network must be a function that returns a new network, so that seeds differ; got {got}")
    with seeded(0):  # a DataLoader shuffles by these generators
        data = read_data(given.batches, given.eval_batches, config.steps)
    scoring = make_scoring(given.loss, given.metric, data.training[0])
    subject = Subject(Networks(given.network, data.training[0], config.remove), data, scoring)
    why_alone = subject.networks.why_no_place()
    arms = ("plain",) if why_alone else ("plain", "bn")
    for arm in arms:
        _try(subject, arm)
    starts = [digest_of(subject.networks.fresh(seed).state_dict()) for seed in (1, 2)]
    settings = TrialSettings(
        **asdict(config),
        **names._asdict(),
        subject=digest_of([*data, starts[0]]),
        score=scoring.name,
        higher=scoring.higher,
        arms=arms,
        why_alone=why_alone,
        one_start=starts[0] == starts[1],
    )
    return Prepared(subject, settings)


def create(settings: TrialSettings, out: Path | None) -> Run:
    """Create the run folder.

    Raises:
        BatchNormError: `out` exists and is not an empty folder.
        StorageError: it cannot be created or written.
    """
    return Run.create(out, EXPERIMENT, json_values(settings), digest(settings, EXPERIMENT))


def reopen(folder: Path) -> tuple[Run, TrialSettings]:
    """Return the run in a folder, and its settings.

    Raises:
        BatchNormError: it is no run of a trial, or its settings are damaged or were edited.
    """
    run, experiment, saved = Run.open(folder)
    if experiment != EXPERIMENT:
        raise BatchNormError(f"{folder} is a run of {experiment!r}; a trial resumes its own")
    return run, saved_settings(TrialSettings, saved, run.config, EXPERIMENT)


def check_same(settings: TrialSettings, saved: TrialSettings, run: Run) -> None:
    """Check that a run is resumed with what it began with. The names of functions and batches may be others.

    Raises:
        BatchNormError: a setting, the network or the batches are others.
    """
    for name in (field.name for field in fields(TrialConfig)):
        before, now = getattr(saved, name), getattr(settings, name)
        if before != now:
            raise BatchNormError(f"{run.config} has {name} {shown(before)}; got {shown(now)}. Give the run's own")
    if (settings.subject, settings.score, settings.arms) != (saved.subject, saved.score, saved.arms):
        raise BatchNormError(
            f"the network's first weights, the batches or the score are others than those of {run.folder}. "
            "Factories must give the same each time; or start a new trial"
        )


def _try(subject: Subject, arm: str) -> None:
    """Run a network on the smallest batch as training does, and measure one held-out batch."""
    model = subject.networks.build(arm, 1)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise BatchNormError(f"{type(model).__name__} has no parameter that requires a gradient: nothing to train")
    with seeded(1), torch.no_grad():
        loss = subject.scoring.loss_of(model, copied(min(subject.data.training, key=examples)))
        subject.scoring.mean_score(model.eval(), subject.data.held_out[:1])
    if not loss.is_floating_point():
        raise BatchNormError(f"the loss returns {loss.dtype}; wanted a floating point number")
