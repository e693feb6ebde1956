"""The training loop: plain SGD over numbered mini-batches, measured and checkpointed as it goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Event

import torch
from torch import Tensor, nn

from .run import Checkpoint, Row

CHECKPOINT_SECONDS = 5.0


@dataclass(frozen=True)
class Training:
    """One network's training: everything that decides its result.

    Arguments:
        model: the network, at its initial weights.
        gradients: the loss of mini-batch `step` (from 0) under the model, a scalar, and its gradient by every one of
            `model.parameters()`, in their order.
        measure: what to record of the model in eval mode, as JSON values.
        lr: learning rate of plain SGD, theta -= lr * gradient.
        steps: how many mini-batches in all.
        measure_every: steps between two records; the first is before step 1, the last after step `steps`.
    """

    model: nn.Module
    gradients: Callable[[int], tuple[Tensor, Sequence[Tensor]]]
    measure: Callable[[], Row]
    lr: float
    steps: int
    measure_every: int


def train(training: Training, record: Callable[[Row], None], stop: Event, checkpoint: Checkpoint | None = None) -> None:
    """Train from `checkpoint`, if it holds a state, to the end or to the first step after `stop` is set.

    Whether stopped, killed or neither, the records are the same to the bit: batches are numbered, plain SGD has no
    state, and a measurement depends on the model alone.
    """
    step = _restore(training, checkpoint)
    parameters = list(training.model.parameters())
    saved_step, saved_at = step, time.monotonic()
    if step == 0:
        record({"step": 0, "loss": None, **_measure(training)})
    while step < training.steps and not stop.is_set():
        loss, gradients = training.gradients(step)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.add_(gradient, alpha=-training.lr)
        step += 1
        if step % training.measure_every == 0 or step == training.steps:
            record({"step": step, "loss": loss.item(), **_measure(training)})
        if checkpoint is not None and time.monotonic() - saved_at > CHECKPOINT_SECONDS:
            checkpoint.save({"step": step, "model": training.model.state_dict()})
            saved_step, saved_at = step, time.monotonic()
    if checkpoint is not None and step > saved_step:
        checkpoint.save({"step": step, "model": training.model.state_dict()})


def _restore(training: Training, checkpoint: Checkpoint | None) -> int:
    training.model.train()
    state = checkpoint.load() if checkpoint is not None else None
    if state is None:
        return 0
    training.model.load_state_dict(state["model"])
    return state["step"]


def _measure(training: Training) -> Row:
    training.model.eval()
    with torch.no_grad():
        row = training.measure()
    training.model.train()
    return row
