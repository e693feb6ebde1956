"""`BatchNormCallback` for Lightning's Trainer."""

from __future__ import annotations

from typing import Any

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.trainer.states import TrainerFn
    from lightning.pytorch.utilities import rank_zero_info
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("batchnorm.integrations.lightning needs Lightning: pip install lightning") from error

from .upkeep import Upkeep


class BatchNormCallback(Upkeep, Callback):
    """Recalibrate the network, in place, before each validation and checkpoint, and examine it at the end of `fit`.

    So a validation, and whoever loads a checkpoint, has the population statistics of the weights (Alg. 2, line 10), not
    moving averages over many weights. The training goes on as without the callback: weights, random numbers and the
    order of the batches are the same.

    The sanity check before the training is left alone. Layers whose statistics are frozen (`bn.freeze`) keep them. In
    distributed training every process measures batches of its own, and the statistics are merged.

    Arguments:
        batches: how many batches of the training loader to measure each time.
        forward: called as `forward(module, batch)` to run the network on a batch. By default the module is called with
            the first part of the batch.
        loss: called as `loss(output, target)`: the doctor's findings are in its units.

    Raises:
        BatchNormError: `batches` is below 1, or, at the start of `fit`, the network has no BN layer.

    Example:
        >>> from batchnorm.integrations.lightning import BatchNormCallback
        >>> keeper = BatchNormCallback(batches=20)  # Trainer(callbacks=[keeper])
        >>> keeper.result is None  # the doctor's result, after trainer.fit(module)
        True
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a network without BN."""
        self._begin(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Recalibrate before a validation within `fit`."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._on_loader(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Recalibrate before a checkpoint is written: it holds the same tensors."""
        self._on_loader(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Recalibrate the network that leaves the training, and examine it."""
        self._on_loader(trainer, pl_module)
        if trainer.train_dataloader is not None:
            self._examine(pl_module, trainer.train_dataloader)
            rank_zero_info(str(self.result))

    def _on_loader(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.train_dataloader is not None:
            self._recalibrate(module, trainer.train_dataloader, trainer.global_step)
