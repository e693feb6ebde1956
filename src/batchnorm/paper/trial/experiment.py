"""Train every contender of a trial with every seed, one after another, into a run folder."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from threading import Event
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ...algorithm2.freeze import statistics_frozen
from ...algorithm2.recalibrate import recalibrate
from ...errors import BatchNormError
from ...torch_private import AnyBatchNorm
from ..inception.recipe import accelerate
from ..inception.variants import decayed
from ..training.checkpoint import Checkpoint, load_tensors
from ..training.loop import train
from ..training.rows import Row
from ..training.run import Run
from ..training.settings import digest
from .config import TrialConfig, TrialSettings
from .contenders import Networks, seed_generators, seeded
from .data import Data
from .records import Contender, TrialFields, contenders
from .scoring import Scoring

EXPERIMENT = "trial"
STATISTICS_BATCHES = 8  # training batches that estimate the population statistics (Alg. 2, line 10)


class Subject(NamedTuple):
    """What a trial is of."""

    networks: Networks
    data: Data
    scoring: Scoring


class Job(NamedTuple):
    """One training."""

    contender: Contender
    seed: int

    @property
    def name(self) -> str:
        """Return the name of its checkpoint."""
        return f"{self.contender.arm}-x{self.contender.times:g}-seed-{self.seed}"


Progress = Callable[[Job, int], None]


class ContenderTraining:
    """The training of one contender with one seed, for the loop `train`. All randomness depends on seed and step."""

    ends_at_divergence = True

    def __init__(self, subject: Subject, job: Job, config: TrialConfig) -> None:
        self.model = subject.networks.build(job.contender.arm, job.seed)
        self.steps, self.measure_every = config.steps, config.eval_every
        self._subject, self._job = subject, job
        self._has_statistics = job.contender.arm == "bn" and any(map(_has_statistics, self.model.modules()))
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        own = accelerate(config, times=1) if config.recipe and job.contender.arm == "bn" else config
        self.decay_every = own.decay_every
        self.optimizer = _optimizer(own, parameters, job.contender.lr)

    def update(self, step: int) -> Tensor:
        """Train on mini-batch `step` and return its loss."""
        batch = self._subject.data.batch(self._job.seed, step)
        seed_generators(_combined(self._job.seed, step))  # Dropout draws from it
        self.optimizer.param_groups[0]["lr"] = self.rate(step)
        self.optimizer.zero_grad()
        loss = self._subject.scoring.loss_of(self.model, batch)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: 4 % less after each `decay_every`."""
        lr = self._job.contender.lr
        return decayed(lr, step, self.decay_every) if self.decay_every else lr

    def measure(self) -> Row:
        """Measure the network on the held-out batches, by population statistics of training batches."""
        if not all(parameter.isfinite().all() for parameter in self.model.parameters()):
            return {"score": math.nan}
        if self._has_statistics:
            batches = [self._subject.data.batch(self._job.seed, step) for step in range(STATISTICS_BATCHES)]
            try:
                recalibrate(self.model, batches)
            except BatchNormError:  # no batch has finite activations
                return {"score": math.nan}
        return {"score": self._subject.scoring.mean_score(self.model, self._subject.data.held_out)}

    def state(self) -> dict[str, Any]:
        """Return the parameters, the buffers and the optimizer's state."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()["state"]}

    def restore(self, state: dict[str, Any]) -> None:
        """Load what `state` returned. The learning rate is the settings', not the file's.

        Raises:
            BatchNormError: it is not of this network.
        """
        load_tensors(self.model, state.get("model"))
        saved = state.get("optimizer")
        _check_optimizer(saved, self.optimizer.param_groups[0]["params"])
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": saved})


def jobs(settings: TrialSettings) -> list[Job]:
    """Return all trainings of a trial in order: all contenders of a seed, then the next seed."""
    found = contenders(settings.arms, settings.lr)
    return [Job(contender, seed) for seed in range(1, settings.seeds + 1) for contender in found]


def finished(rows: Sequence[Row], job: Job, settings: TrialSettings) -> bool:
    """Return True if a training has all its rows, to the last step or to its divergence."""
    own = _own(rows, job)
    end = next((row["step"] for row in own if row.get("diverged")), settings.steps)
    wanted = {*range(0, end, settings.eval_every), end}
    return wanted <= {row["step"] for row in own}


def run_trial(
    subject: Subject,
    settings: TrialSettings,
    run: Run,
    stop: Event,
    report: Callable[[Job, Row], None],
    progress: Progress,
) -> list[Row]:
    """Train what is missing in `run` and return all rows. A run that was killed gives the same rows, to the bit.

    Arguments:
        subject: the network, the data and the scoring.
        settings: the settings of the run.
        run: the run folder to write.
        stop: set it to end at the next step, with a checkpoint.
        report: called with each training and its new row.
        progress: called with each training and the number of its steps, after each step.

    Raises:
        BatchNormError: a row or a checkpoint is damaged, or rows before a checkpoint are missing.
        StorageError: the run folder cannot be written.
    """
    checkpoints = {job: run.checkpoint(job.name, digest(settings, EXPERIMENT)) for job in jobs(settings)}
    run.replace_rows(_rows_to_keep(run, settings, checkpoints))
    kept = run.rows()
    for job, checkpoint in checkpoints.items():
        if not finished(kept, job, settings) and not stop.is_set():
            _train(subject, settings, run, job, checkpoint, stop, report, progress)
    return run.rows()


def _train(
    subject: Subject,
    settings: TrialSettings,
    run: Run,
    job: Job,
    checkpoint: Checkpoint,
    stop: Event,
    report: Callable[[Job, Row], None],
    progress: Progress,
) -> None:
    names = {**job.contender._asdict(), "seed": job.seed}

    def record(row: Row) -> None:
        row = {**names, **row}
        run.append(row)
        report(job, row)

    training = ContenderTraining(subject, job, settings)
    with seeded(0), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=RuntimeWarning)  # a contender may diverge: its rows say so
        train(training, record, stop, checkpoint, progress=lambda step, _loss: progress(job, step))
    if finished(run.rows(), job, settings):
        checkpoint.remove()


def _rows_to_keep(run: Run, settings: TrialSettings, checkpoints: dict[Job, Checkpoint]) -> list[Row]:
    """Return the rows of finished trainings, and those of another up to its checkpoint. The loop measures later ones.

    Raises:
        BatchNormError: a row before a checkpoint is missing. Nothing would measure it again.
    """
    rows = run.rows(TrialFields)
    kept: list[Row] = []
    for job, checkpoint in checkpoints.items():
        own = _own(rows, job)
        if finished(rows, job, settings):
            checkpoint.remove()
        else:
            reached = (checkpoint.load() or {"step": -1})["step"]
            own = [row for row in own if row["step"] <= reached]
            missing = set(range(0, reached + 1, settings.eval_every)) - {row["step"] for row in own}
            if missing:
                raise BatchNormError(
                    f"{run.metrics} lacks the row of {job.name} at step {min(missing)}, before its checkpoint; remove "
                    f"{checkpoint.path} and {checkpoint.previous.name} to train it from the start"
                )
        kept += own
    return kept


def _own(rows: Sequence[Row], job: Job) -> list[Row]:
    wanted = (job.contender.arm, job.contender.times, job.seed)
    return [row for row in rows if (row["arm"], row["times"], row["seed"]) == wanted]


def _has_statistics(layer: nn.Module) -> bool:
    return isinstance(layer, AnyBatchNorm) and layer.running_mean is not None and not statistics_frozen(layer)


def _optimizer(config: TrialConfig, parameters: Sequence[Tensor], lr: float) -> torch.optim.Optimizer:
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(parameters, lr, config.momentum, weight_decay=config.weight_decay)


def _check_optimizer(saved: object, parameters: Sequence[Tensor]) -> None:
    """Raise BatchNormError unless the state of each parameter has its shape, or is a count."""
    if not isinstance(saved, dict) or not all(isinstance(values, dict) for values in saved.values()):
        raise BatchNormError("optimizer must be the state of an optimizer")
    shapes = dict(enumerate(parameter.shape for parameter in parameters))
    for number, values in saved.items():
        for name, value in values.items():
            if value is not None and getattr(value, "shape", None) not in (shapes.get(number), torch.Size()):
                raise BatchNormError(f"optimizer's {name!r} of parameter {number!r} does not fit the network")


def _combined(seed: int, step: int) -> int:
    """Return a seed that depends on both numbers."""
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0])
