"""Train one variant of Inception (Sec. 4.2), on one process or on many."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from itertools import chain, islice
from threading import Event
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...algorithm2.recalibrate import recalibrate
from ...errors import BatchNormError
from ..images.damage import DamageLog
from ..images.distortions import Distort
from ..images.interface import Images
from ..images.loader import Batch, ImageBatches, evaluation_batches
from ..images.normalize import normalize
from ..images.waiting import WaitTimer
from ..training.checkpoint import Checkpoint, load_tensors
from ..training.loop import train
from ..training.processes import Processes
from ..training.rows import Row
from ..training.run import Run
from .jobs import CHECKPOINT
from .network import Inception
from .records import TrainingFields, TrainingHeader
from .scores import count_hits
from .settled import Settled, run_digest
from .variants import SGD_MOMENTUM, Variant, learning_rate, rescaled

LOG = logging.getLogger(__name__)
STATISTICS_BATCHES = 20  # training mini-batches of each process that estimate the population statistics
STATISTICS_SEED = 1_000_003  # Added to the seed, so that these batches come in an order of their own.
EVALUATION_BATCH = 100


def build_network(config: Settled, variant: Variant, classes: int, channels: int) -> Inception:
    """Return the network of a settled config, with the initial weights of its seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return Inception(
            classes,
            batch_norm=variant.batch_norm,
            activation=variant.activation,
            lrn=variant.lrn,
            dropout=variant.dropout,
            init_scale=variant.init_scale,
            per_activation=variant.per_activation,
            channels=channels,
            size=config.size,
            width=config.width,
            modules=config.modules,
        )


class Trainer:
    """A network, its optimizer and its images, for the loop `train`. Each process has one.

    Everything random is a function of (seed, step, rank): the batch, its distortions, Dropout. So a checkpoint saves no
    random generator, and training resumes as if it had never stopped.
    """

    ends_at_divergence = True

    def __init__(
        self, config: Settled, variant: Variant, train_images: Images, val_images: Images, processes: Processes
    ) -> None:
        self.config, self.processes, self.val_images, self.step = config, processes, val_images, 0
        self.steps, self.measure_every = config.steps, config.eval_every
        self.variant = rescaled(variant, config.lr, config.decay_every)
        self.model = build_network(config, variant, len(train_images.classes), train_images.channels)
        self.model.to(processes.device, memory_format=config.memory_format)  # pyright: ignore[reportCallIssue]
        # The compiled module shares the parameters and buffers of `model`, which is measured and saved.
        self.replica = processes.replicate(torch.compile(self.model) if config.compile else self.model)  # pyright: ignore[reportArgumentType]
        groups = _parameter_groups(self.model, self.variant.weight_decay)
        self.optimizer = torch.optim.SGD(groups, self.variant.lr, SGD_MOMENTUM)
        self.batches = self._image_batches(train_images, config.seed)
        self.statistics_batches = self._image_batches(train_images, config.seed + STATISTICS_SEED)
        self.damage, self.waiting = DamageLog(config.max_damaged), WaitTimer()
        self._stream: Iterator[tuple[Tensor, Tensor]] | None = None

    def update(self, step: int) -> Tensor:
        """Take one step of SGD with momentum on mini-batch `step`. Return its loss."""
        rate = learning_rate(self.variant, self.epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self._stream is None:
            self._stream = self.prepared(self.waiting.timed(self.batches.batches(step)))
        images, labels = next(self._stream)
        torch.manual_seed(_combined_seed(self.config.seed, step, self.processes.rank))  # Dropout draws from it.
        self.optimizer.zero_grad()
        with self._autocast():
            loss = nn.functional.cross_entropy(self.replica(images), labels)
        loss.backward()
        self.optimizer.step()
        self.step = step + 1
        return loss.detach()

    def measure(self) -> Row:
        """Return the validation accuracy, epoch, learning rate and `waited`.

        `waited` is the share of the time since the last row that training waited for its images. The accuracy is None
        if the network's parameters or activations are not finite.
        """
        shares = self.processes.sum(torch.tensor(self.waiting.share, dtype=torch.float64))
        waited = round(shares.item() / self.processes.world_size, 4)
        row = {"epoch": self.epoch, "lr": learning_rate(self.variant, self.epoch), "waited": waited}
        top1, top5 = self._accuracy()
        self.waiting.restart()  # The time of the measurement is not training's.
        return row | {"top1": top1, "top5": top5}

    def _accuracy(self) -> tuple[float, float] | tuple[None, None]:
        """Return top-1 and top-5 on all validation images, one crop, by population statistics (Alg. 2, line 10)."""
        if not all(parameter.isfinite().all() for parameter in self.model.parameters()):
            return None, None
        if self.variant.batch_norm:
            stream = self.prepared(self.statistics_batches.batches(self.step))
            batches = [images for images, _ in islice(stream, STATISTICS_BATCHES)]
            try:
                with self._autocast():
                    recalibrate(self.model, batches)
            except BatchNormError:  # No batch has finite activations. All processes raise alike.
                return None, None
        top1, top5, count = self.processes.sum(self.count_validation_hits()).tolist()
        if not count:
            raise BatchNormError(f"none of the {len(self.val_images)} validation images can be read")
        return top1 / count, top5 / count

    @property
    def epoch(self) -> float:
        """The number of passes over the training set, by all processes together."""
        return self.step / self.batches.sampler.steps_per_epoch

    def state(self) -> dict[str, Any]:
        """Return the state that a checkpoint saves."""
        images = self.batches.source
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "classes": list(images.classes),
            "channels": images.channels,
            "processes": self.processes.world_size,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Resume from a state that `state` returned. Warn if the number of processes has changed.

        Raises:
            BatchNormError: the state is of another network, or of other images.
        """
        images = self.batches.source
        if (list(state["classes"]), state["channels"]) != (list(images.classes), images.channels):
            raise BatchNormError("classes and channels must be those of the training images")
        load_tensors(self.model, state.get("model"))
        self._load_momentum(state.get("optimizer"))
        self.step = state["step"]
        before, now = state.get("processes", self.processes.world_size), self.processes.world_size
        if before != now and self.processes.rank == 0:
            LOG.warning("this run had %d processes and now has %d: its mini-batches and epochs change", before, now)

    def _load_momentum(self, saved: object) -> None:
        """Load SGD's momentum. The learning rate and the weight decay are the settings', not the file's."""
        momentum = saved.get("state") if isinstance(saved, dict) else None
        if not isinstance(momentum, dict):
            raise BatchNormError("optimizer must be the state of SGD")
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        shapes = {number: parameter.shape for number, parameter in enumerate(parameters)}
        for number, values in momentum.items():
            buffer = values.get("momentum_buffer") if isinstance(values, dict) else None
            if not isinstance(buffer, Tensor) or buffer.shape != shapes.get(number):
                raise BatchNormError(f"optimizer's momentum of parameter {number!r} does not fit the network")
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": momentum, "param_groups": groups})

    def prepared(self, stream: Iterator[Batch], skip_empty: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield normalized images and labels on the network's device. Log the damaged images.

        Arguments:
            stream: the batches.
            skip_empty: skip a batch whose images are all damaged. Training cannot: its steps number the batches.

        Raises:
            BatchNormError: too many images are damaged, or all of a batch.
        """
        for batch in stream:
            self.damage.record(batch.damaged)
            if not len(batch.labels):
                if not skip_empty:
                    raise BatchNormError(f"every image of a mini-batch is damaged, such as {batch.damaged[0]}")
                continue
            images = normalize(batch.images.to(self.processes.device, non_blocking=True))
            labels = batch.labels.to(self.processes.device, non_blocking=True)
            yield images.contiguous(memory_format=self.config.memory_format), labels

    def count_validation_hits(self) -> Tensor:
        """Sum `count_hits` over this process's part of the validation images."""
        config = self.config
        stream = evaluation_batches(self.val_images, config.size, 1, EVALUATION_BATCH, self.processes, config.workers)
        counts = torch.zeros(3, dtype=torch.float64)
        for images, labels in self.prepared(stream, skip_empty=True):
            with self._autocast():
                logits = self.model(images)
            counts += count_hits(logits, labels)
        return counts

    def _image_batches(self, images: Images, seed: int) -> ImageBatches:
        return ImageBatches(
            images,
            Distort(self.config.size, self.variant.distortion),
            self.config.batch_size,
            seed=seed,
            within_shard=self.variant.within_shard_shuffle,
            processes=self.processes,
            workers=self.config.workers,
        )

    def _autocast(self) -> torch.autocast:
        bfloat16 = self.config.precision == "bfloat16"
        return torch.autocast(self.processes.device.type, torch.bfloat16, enabled=bfloat16)


def run_variant(
    trainer: Trainer,
    run: Run | None,
    stop: Event,
    report: Callable[[Row], None] | None = None,
    progress: Callable[[int, Tensor], None] | None = None,
) -> None:
    """Train into the folder of `run`. Resume from its checkpoint if it has one.

    Arguments:
        trainer: the network, from the same config on all processes.
        run: the run of rank 0; None on the other processes.
        stop: set it (Ctrl-C) to end all processes at the next step, with a checkpoint to resume from.
        report: called with each row as it is measured, on rank 0.
        progress: called after each step with the number of steps done and the loss.

    Raises:
        BatchNormError: too many images are damaged, or the records or the checkpoint are damaged or of other settings,
            or rows before the checkpoint are missing.
        StorageError: the run's folder cannot be written.
    """
    checkpoint = None
    if run is not None:
        checkpoint = run.checkpoint(CHECKPOINT, run_digest(trainer.config, trainer.variant), TrainingHeader)
        run.replace_rows(_rows_to_keep(run, checkpoint, trainer))

    def record(row: Row) -> None:
        if run is not None:
            run.append(row)
            if report is not None:
                report(row)

    seconds = 60 * trainer.config.checkpoint_minutes
    train(trainer, record, stop, checkpoint, processes=trainer.processes, checkpoint_seconds=seconds, progress=progress)


def _rows_to_keep(run: Run, checkpoint: Checkpoint, trainer: Trainer) -> list[Row]:
    """Return the rows up to the checkpoint. The loop measures the later ones again.

    Raises:
        BatchNormError: a row before the checkpoint is missing. Nothing would measure it again.
    """
    reached = (checkpoint.load() or {"step": -1})["step"]
    kept = [row for row in run.rows(TrainingFields) if row["step"] <= reached]
    steps = {row["step"] for row in kept}
    last = [reached] if reached == trainer.steps else []
    wanted = chain(range(0, reached + 1, trainer.measure_every), last)
    missing = next((step for step in wanted if step not in steps), None)
    if missing is not None:
        raise BatchNormError(
            f"{run.metrics} lacks the row of step {missing}, and the checkpoint is at step {reached}; "
            f"remove {checkpoint.path} and {checkpoint.previous.name} to train from the start"
        )
    return kept


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Apply the L2 weight to weights alone. The paper does not mention gamma, beta and biases."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() == 1]},
    ]


def _combined_seed(*numbers: int) -> int:
    """Return a seed that depends on all `numbers`."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
