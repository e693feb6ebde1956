"""Train the two arms of Fig. 1, without and with BN, on the same mini-batches from the same weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import Event
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import BatchNormError
from ..training.checkpoint import Checkpoint, load_tensors
from ..training.loop import train
from ..training.rows import Row
from ..training.run import Run
from ..training.settings import check_settings, digest
from .batches import Batches
from .config import MnistConfig
from .data import Mnist, load_mnist
from .measure import measure
from .network import network
from .parallel import in_parallel
from .records import ARMS, ArmFields

EXPERIMENT = "mnist"
UNIT = 0  # the "typical" sigmoid of Fig. 1 (b, c), chosen before any result was seen


def load_data(config: MnistConfig) -> Mnist:
    """Check the settings and return the data that they name. Call it before you write anything.

    Raises:
        BatchNormError: the first setting that is out of range, or data that cannot be read.
    """
    check_settings(config)
    data = load_mnist(config.data)
    Batches(len(data.train_images), config.batch_size, config.seed)
    return data


class ArmTraining:
    """The training of one arm by plain SGD. The loop `train` runs it.

    Images stay one byte a pixel until their batch comes up, so that gathering them reads a quarter of the memory.
    """

    ends_at_divergence = False  # Fig. 1 shows the rest of the curve too

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
        """Return the parameters and buffers. Plain SGD has no state of its own."""
        return {"model": self.model.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Load the parameters and buffers that `state` returned.

        Raises:
            BatchNormError: they are not those of this network.
        """
        load_tensors(self.model, state.get("model"))


def run_mnist(config: MnistConfig, data: Mnist, run: Run, report: Callable[[Row], None], stop: Event) -> list[Row]:
    """Train both arms into `run` and return all rows, ordered by step. Resume from its checkpoints if it has any.

    Arguments:
        config: the settings of both arms.
        data: the images that `load_data` returned.
        run: the run folder to write.
        report: called with each new row, from the thread of its arm.
        stop: set it, and both arms end at their next step with a checkpoint. Ctrl-C sets it.

    Raises:
        BatchNormError: a row or a checkpoint is damaged or of other settings, or rows before a checkpoint are missing.
        StorageError: the run folder cannot be written.
    """
    checkpoints = {arm: run.checkpoint(arm, digest(config, EXPERIMENT)) for arm in ARMS}
    run.replace_rows(_rows_to_keep(run, config, checkpoints))

    def train_arm(arm: str) -> None:
        def record(row: Row) -> None:
            row = {"step": row["step"], "arm": arm, **row}
            run.append(row)
            report(row)

        train(ArmTraining(config, arm, data), record, stop, checkpoints[arm])

    in_parallel(train_arm, ARMS, config.threads, stop)
    rows = sorted(run.rows(), key=lambda row: (row["step"], ARMS.index(row["arm"])))
    run.replace_rows(rows)
    return rows


def _rows_to_keep(run: Run, config: MnistConfig, checkpoints: Mapping[str, Checkpoint]) -> list[Row]:
    """Return the rows up to each arm's checkpoint. The loop measures the later ones again.

    Raises:
        BatchNormError: a row before a checkpoint is missing. Nothing would measure it again.
    """
    rows = run.rows(ArmFields)
    kept = []
    for arm, checkpoint in checkpoints.items():
        reached = (checkpoint.load() or {"step": -1})["step"]
        own = [row for row in rows if row["arm"] == arm and row["step"] <= reached]
        if len(own) < len(range(0, reached + 1, config.eval_every)):
            raise BatchNormError(
                f"{run.metrics} lacks rows of {arm!r} before step {reached}, where its checkpoint is; "
                f"remove {checkpoint.path} to train it from the start"
            )
        kept += own
    return kept
