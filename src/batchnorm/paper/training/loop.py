"""Run a training loop with numbered mini-batches, measurements and checkpoints, on one process or on many."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from threading import Event
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...errors import BatchNormError
from .checkpoint import Checkpoint
from .processes import ALONE, Processes
from .rows import Row

CHECKPOINT_SECONDS = 5.0


class Trainable(Protocol):
    """One network's training: everything that decides its result."""

    @property
    def model(self) -> nn.Module:
        """Return the network, at its initial weights at first."""
        ...

    @property
    def steps(self) -> int:
        """Return the total number of mini-batches."""
        ...

    @property
    def measure_every(self) -> int:
        """Return the number of steps between two records. The first is of step 0, the last of the last step."""
        ...

    @property
    def ends_at_divergence(self) -> bool:
        """Return True to end at the first loss that is not finite, with a record that says `diverged`."""
        ...

    def update(self, step: int) -> Tensor:
        """Train on mini-batch `step`, counted from 0, and return its loss, a scalar.

        Randomness must be a function of the step, so that a training can resume at any step.
        """
        ...

    def measure(self) -> Row:
        """Measure the model, which is in eval mode, and return JSON values. Every process calls it."""
        ...

    def state(self) -> dict[str, Any]:
        """Return the state that a checkpoint saves."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Resume from a state that `state` returned. The loop adds `step`, the number of steps done."""
        ...


def train(
    training: Trainable,
    record: Callable[[Row], None],
    stop: Event,
    checkpoint: Checkpoint | None = None,
    *,
    processes: Processes = ALONE,
    checkpoint_seconds: float | None = None,
    progress: Callable[[int, Tensor], None] | None = None,
) -> None:
    """Train to the end, or to the first step after `stop` is set. Resume from `checkpoint` if it holds a state.

    A training that was stopped or killed gives the same records, to the bit, as one that was not. Batches are
    numbered, and a measurement depends on the model alone. Only measured times differ.

    Arguments:
        training: the network and its data.
        record: called with each row, on every process.
        stop: set it to end all processes at their next step.
        checkpoint: read and written on rank 0, unused on the others.
        processes: the processes that train together.
        checkpoint_seconds: time between two checkpoints, `CHECKPOINT_SECONDS` by default.
        progress: called after each step with the number of steps done and the loss.

    Raises:
        StorageError: a checkpoint cannot be written.
    """
    seconds = CHECKPOINT_SECONDS if checkpoint_seconds is None else checkpoint_seconds
    step, diverged = _restore(training, checkpoint, processes)
    saved_step, saved_at = step, time.monotonic()
    if step == 0:
        record({"step": 0, "loss": None, **_measure(training)})
    (stopped,) = processes.any(stop.is_set())
    while step < training.steps and not stopped and not diverged:
        loss = training.update(step)
        step += 1
        late = checkpoint is not None and time.monotonic() - saved_at > seconds
        diverged = training.ends_at_divergence and not math.isfinite(loss.item())
        stopped, late, diverged = processes.any(stop.is_set(), late, diverged)
        if diverged:
            record({"step": step, "loss": loss.item(), "diverged": True})
        elif step % training.measure_every == 0 or step == training.steps:
            record({"step": step, "loss": loss.item(), **_measure(training)})
        if progress is not None:
            progress(step, loss)
        if late:
            _save(training, checkpoint, step, diverged)
            saved_step, saved_at = step, time.monotonic()
    if step > saved_step:
        _save(training, checkpoint, step, diverged)
    if stopped:
        stop.set()  # another process may have been stopped, not this one: no process begins another training


def _save(training: Trainable, checkpoint: Checkpoint | None, step: int, diverged: bool) -> None:
    if checkpoint is not None:
        checkpoint.save({"step": step, "diverged": diverged, **training.state()})


def _restore(training: Trainable, checkpoint: Checkpoint | None, processes: Processes) -> tuple[int, bool]:
    """Load the checkpoint of rank 0 on every process. Return the steps done and whether the training diverged."""
    training.model.train()
    state = processes.share(lambda: checkpoint.load() if checkpoint is not None else None)
    if state is None:
        return 0, False
    try:
        training.restore(state)
    except BatchNormError as error:
        raise BatchNormError(f"{checkpoint.path if checkpoint else 'the checkpoint'}: {error}") from error
    return state["step"], state.get("diverged", False)


def _measure(training: Trainable) -> Row:
    training.model.eval()
    with torch.no_grad():
        row = training.measure()
    training.model.train()
    return row
