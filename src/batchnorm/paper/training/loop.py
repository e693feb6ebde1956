"""The training loop: numbered mini-batches, measured and checkpointed as it goes, on one process or on many."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoint import Checkpoint
from .processes import ALONE, Processes
from .rows import Row

CHECKPOINT_SECONDS = 5.0


@dataclass(frozen=True)
class Training:
    """One network's training: everything that decides its result.

    Arguments:
        model: the network, at its initial weights.
        update: train on mini-batch `step` (from 0), and return its loss, a scalar. Whatever is random in it must be a
            function of the step, so that a training can go on anywhere.
        measure: what to record of the model in eval mode, as JSON values. Every process calls it.
        steps: how many mini-batches in all.
        measure_every: steps between two records; the first is before step 1, the last after step `steps`.
        state, restore: what a checkpoint keeps, and how to go on from it; by default the model's `state_dict`.
        end_at_divergence: end at the first loss that is not finite, with a record that says `diverged`.
    """

    model: nn.Module
    update: Callable[[int], Tensor]
    measure: Callable[[], Row]
    steps: int
    measure_every: int
    state: Callable[[], dict[str, Any]] | None = None
    restore: Callable[[dict[str, Any]], None] | None = None
    end_at_divergence: bool = False


def train(
    training: Training,
    record: Callable[[Row], None],
    stop: Event,
    checkpoint: Checkpoint | None = None,
    *,
    processes: Processes = ALONE,
    seconds: float | None = None,
    progress: Callable[[int, Tensor], None] | None = None,
) -> None:
    """Train from `checkpoint`, if it holds a state, to the end or to the first step after `stop` is set.

    Whether stopped, killed or neither, the records are the same to the bit: batches are numbered, and a measurement
    depends on the model alone, but for what it says of the clock.

    Arguments:
        record: called with each row, on every process.
        checkpoint: rank 0's is read and written, the others' are not used.
        seconds: between two checkpoints; `CHECKPOINT_SECONDS` by default.
        progress: called with the number of steps done and the loss, after each.
    """
    seconds = CHECKPOINT_SECONDS if seconds is None else seconds
    step, diverged = _restore(training, checkpoint, processes)
    saved_step, saved_at = step, time.monotonic()
    if step == 0:
        record({"step": 0, "loss": None, **_measure(training)})
    (stopped,) = processes.any(stop.is_set())
    while step < training.steps and not stopped and not diverged:
        loss = training.update(step)
        step += 1
        late = checkpoint is not None and time.monotonic() - saved_at > seconds
        diverged = training.end_at_divergence and not math.isfinite(loss.item())
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
        stop.set()  # where another process was told to: none goes on to another training


def _save(training: Training, checkpoint: Checkpoint | None, step: int, diverged: bool) -> None:
    if checkpoint is not None:
        state = training.state() if training.state is not None else {"model": training.model.state_dict()}
        checkpoint.save({"step": step, "diverged": diverged, **state})


def _restore(training: Training, checkpoint: Checkpoint | None, processes: Processes) -> tuple[int, bool]:
    training.model.train()
    state = processes.share(lambda: checkpoint.load() if checkpoint is not None else None)
    if state is None:
        return 0, False
    if training.restore is not None:
        training.restore(state)
    else:
        training.model.load_state_dict(state["model"])
    return state["step"], state.get("diverged", False)


def _measure(training: Training) -> Row:
    training.model.eval()
    with torch.no_grad():
        row = training.measure()
    training.model.train()
    return row
