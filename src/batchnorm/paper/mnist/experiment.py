"""Sec. 4.1: the MNIST network, trained with and without BN on the same batches from the same weights."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from threading import Event
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import BatchNormError
from ...layers import BatchNorm1d
from ..training.loop import train
from ..training.rows import Row
from ..training.run import Run
from ..training.settings import check_settings
from .config import MnistConfig
from .data import PIXELS, Batches, Mnist, load_mnist
from .measure import measure

LABELS = {"plain": "without BN", "bn": "with BN"}
ARMS = tuple(LABELS)
HIDDEN, LAYERS, CLASSES = 100, 3, 10
UNIT = 0  # the "typical" sigmoid of Fig. 1 (b, c), named before any result was seen
Report = Callable[[Row], None]


def load_data(config: MnistConfig) -> Mnist:
    """Check the settings and return the data that they name. Call it before you write anything.

    Raises:
        BatchNormError: the first setting that is out of range, or data that cannot be read.
    """
    check_settings(config, {"steps": 1, "eval_every": 1, "threads": 1, "seed": 0}, ("lr", "std"))
    data = load_mnist(config.data)
    Batches(len(data.train_images), config.batch_size, config.seed)
    return data


def network(arm: str, std: float, seed: int) -> nn.Sequential:
    """784-100-100-100-10 with sigmoids; in arm "bn", z = g(BN(Wu)) in place of z = g(Wu + b) (Sec. 3.2).

    Both arms draw the same weights for the same seed; biases start at 0, gamma at 1, beta at 0.
    """
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    inputs = PIXELS
    for _ in range(LAYERS):
        layers.append(nn.Linear(inputs, HIDDEN, bias=arm == "plain"))
        if arm == "bn":
            layers.append(BatchNorm1d(HIDDEN))
        layers.append(nn.Sigmoid())
        inputs = HIDDEN
    layers.append(nn.Linear(inputs, CLASSES))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=std, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


class ArmTraining:
    """The training of one arm: plain SGD from the seed's weights, on the seed's mini-batches.

    Images stay one byte a pixel until their batch comes up, so that gathering them reads a quarter of the memory.
    """

    ends_at_divergence = False  # Figure 1 shows how a diverged network stays

    def __init__(self, config: MnistConfig, arm: str, data: Mnist) -> None:
        self.model = network(arm, config.std, config.seed)
        self.steps, self.measure_every = config.steps, config.eval_every
        self._lr, self._data = config.lr, data
        self._batches = Batches(len(data.train_images), config.batch_size, config.seed)
        self._test_images = data.test_images.float()
        self._parameters = list(self.model.parameters())

    def update(self, step: int) -> Tensor:
        """Train on mini-batch `step` and return its loss."""
        index = self._batches.indices(step)
        images = self._data.train_images.index_select(0, index).float()
        loss = F.cross_entropy(self.model(images), self._data.train_labels.index_select(0, index))
        gradients = torch.autograd.grad(loss, self._parameters)
        with torch.no_grad():
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                parameter.add_(gradient, alpha=-self._lr)
        return loss.detach()

    def measure(self) -> Row:
        """Measure the network on the test images."""
        return measure(self.model, self._test_images, self._data.test_labels, UNIT)

    def state(self) -> dict[str, Any]:
        """Return the parameters and buffers. SGD without momentum has no other state."""
        return {"model": self.model.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Load the parameters and buffers that `state` returned."""
        self.model.load_state_dict(state["model"])


def run_mnist(config: MnistConfig, data: Mnist, run: Run, report: Report, stop: Event) -> list[Row]:
    """Train both arms into `run`, from its checkpoints if it has any; returns all rows, ordered by step.

    Arguments:
        report: called with every row as it is measured, from the thread of its arm.
        stop: set it (Ctrl-C) and both arms end at the next step, with a checkpoint to resume from.
    """
    run.replace_rows(_rows_to_keep(run, config))

    def train_arm(arm: str) -> None:
        def record(row: Row) -> None:
            row = {"step": row["step"], "arm": arm, **row}
            run.append(row)
            report(row)

        train(ArmTraining(config, arm, data), record, stop, run.checkpoint(arm))

    in_parallel(train_arm, ARMS, config.threads, stop)
    rows = sorted(run.rows(), key=lambda row: (row["step"], ARMS.index(row["arm"])))
    run.replace_rows(rows)
    return rows


def in_parallel(task: Callable[[Any], None], jobs: Sequence[Any], threads: int, stop: Event) -> None:
    """`task` of every job, at most `threads` at once; a failure or Ctrl-C sets `stop` and waits for tasks to see it.

    The threads are Python's: torch lets go of the interpreter lock while it computes, and what runs between its
    operations takes turns. Inside a task torch has one thread, whatever `threads` is: the number changes the order of
    its sums, and so the bits of the records.
    """

    def stop_others_on_failure(job: Any) -> None:
        try:
            task(job)
        except BaseException:
            stop.set()
            raise

    before = torch.get_num_threads(), sys.getswitchinterval()
    torch.set_num_threads(1)
    # Operations here take some 10 us: a thread that waits Python's 5 ms for the lock would see the other one run alone.
    sys.setswitchinterval(1e-4)
    futures = []
    try:
        with ThreadPoolExecutor(min(threads, len(jobs))) as pool:
            try:
                futures += [pool.submit(stop_others_on_failure, job) for job in jobs]
                wait(futures, return_when=FIRST_EXCEPTION)
            except KeyboardInterrupt:
                stop.set()
    finally:
        torch.set_num_threads(before[0])
        sys.setswitchinterval(before[1])
    for future in futures:
        future.result()


def _rows_to_keep(run: Run, config: MnistConfig) -> list[Row]:
    """The rows up to each arm's checkpoint; those after it will be measured again.

    Raises:
        BatchNormError: rows are missing that a checkpoint is past, and that nothing would measure again.
    """
    rows = run.rows()
    kept = []
    for arm in ARMS:
        reached = (run.checkpoint(arm).load() or {"step": -1})["step"]
        own = [row for row in rows if row["arm"] == arm and row["step"] <= reached]
        if len(own) < len(range(0, reached + 1, config.eval_every)):
            raise BatchNormError(
                f"{run.metrics} lacks rows of {arm!r} before step {reached}, where its checkpoint is; "
                f"remove {run.checkpoint(arm).path} to train it from the start"
            )
        kept += own
    return kept
