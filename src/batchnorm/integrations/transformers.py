"""`BatchNormCallback` for the Trainer of Hugging Face's Transformers."""

from __future__ import annotations

import logging
from typing import Any

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "batchnorm.integrations.transformers needs Transformers: pip install 'transformers[torch]'"
    ) from error

from .upkeep import Upkeep

_logger = logging.getLogger(__name__)


class BatchNormCallback(Upkeep, TrainerCallback):
    """Recalibrate the network, in place, before each evaluation and save, and examine it at the end of `train`.

    So an evaluation, and whoever loads a checkpoint, has the population statistics of the weights (Alg. 2, line 10),
    not moving averages over many weights. The training goes on as without the callback: weights, random numbers and
    the order of the batches are the same.

    Layers whose statistics are frozen (`bn.freeze`) keep them. In distributed training every process measures batches
    of its own, and the statistics are merged. A call of `trainer.evaluate()` outside of `train` measures nothing.

    Arguments:
        batches: how many batches of the training loader to measure each time.
        forward: called as `forward(model, batch)` to run the network on a batch. By default the batch is a dict of
            keyword arguments.
        loss: called as `loss(output, batch)`: the doctor's findings are in its units.

    Raises:
        BatchNormError: `batches` is below 1, or, at the start of `train`, the network has no BN layer.

    Example:
        >>> from batchnorm.integrations.transformers import BatchNormCallback
        >>> keeper = BatchNormCallback(batches=20)  # Trainer(..., callbacks=[keeper])
        >>> keeper.result is None  # the doctor's result, after trainer.train()
        True
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse a network without BN."""
        self._begin(kwargs["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Recalibrate if an evaluation or a save follows the step."""
        if control.should_evaluate or control.should_save:
            self._recalibrate(kwargs["model"], kwargs["train_dataloader"], state.global_step)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Recalibrate if an evaluation or a save follows the epoch."""
        self.on_step_end(args, state, control, **kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Recalibrate the network that leaves the training, and examine it."""
        self._recalibrate(kwargs["model"], kwargs["train_dataloader"], state.global_step)
        self._examine(kwargs["model"], kwargs["train_dataloader"])
        _logger.info("%s", self.result)
