"""Sec. 4.2: one variant of Inception, trained on one process or on many."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from itertools import islice
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
from ..mnist.measure import count_hits
from ..training.checkpoint import Checkpoint
from ..training.loop import train
from ..training.processes import Processes
from ..training.rows import Row
from ..training.run import Run
from .network import Inception
from .settled import Settled
from .variants import SGD_MOMENTUM, Variant, learning_rate, rescaled

LOG = logging.getLogger(__name__)
STATISTICS_BATCHES = 20  # training mini-batches a process that the population statistics are estimated from
STATISTICS_SEED = 1_000_003  # they are drawn in an order of their own
EVALUATION_BATCH = 100


def network(config: Settled, variant: Variant, classes: int, channels: int) -> Inception:
    """The network of a settled config, at the initial weights that its seed gives."""
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
    """A network, its optimizer and its images: what `train` calls, on each of the processes.

    Everything random is a function of (seed, step, rank): the batch, its distortions, Dropout. A checkpoint needs no
    state of a random generator, and any training goes on from it as if it had never stopped.
    """

    ends_at_divergence = True

    def __init__(
        self, config: Settled, variant: Variant, train_images: Images, val_images: Images, processes: Processes
    ) -> None:
        self.config, self.processes, self.val_images, self.step = config, processes, val_images, 0
        self.steps, self.measure_every = config.steps, config.eval_every
        self.variant = rescaled(variant, config.lr, config.decay_every)
        self.model = network(config, variant, len(train_images.classes), train_images.channels)
        self.model.to(processes.device, memory_format=config.memory_format)  # pyright: ignore[reportCallIssue]
        # The compiled module shares the parameters and buffers of the plain one, which is measured and saved.
        self.replica = processes.replicate(torch.compile(self.model) if config.compile else self.model)  # pyright: ignore[reportArgumentType]
        self.optimizer = torch.optim.SGD(_groups(self.model, self.variant.weight_decay), self.variant.lr, SGD_MOMENTUM)
        self.batches = self._image_batches(train_images, config.seed)
        self.statistics_batches = self._image_batches(train_images, config.seed + STATISTICS_SEED)
        self.damage, self.waiting = DamageLog(config.max_damaged), WaitTimer()
        self._stream: Iterator[tuple[Tensor, Tensor]] | None = None

    def update(self, step: int) -> Tensor:
        """One step of SGD with momentum on mini-batch `step`; returns its loss."""
        rate = learning_rate(self.variant, self.epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self._stream is None:
            self._stream = self._placed(self.waiting.timed(self.batches.batches(step)))
        images, labels = next(self._stream)
        torch.manual_seed(_number(self.config.seed, step, self.processes.rank))  # for Dropout
        self.optimizer.zero_grad()
        with self._autocast():
            loss = nn.functional.cross_entropy(self.replica(images), labels)
        loss.backward()
        self.optimizer.step()
        self.step = step + 1
        return loss.detach()

    def measure(self) -> Row:
        """Accuracy, and how the training stands: `waited`, the share of its time since the last row, is for images."""
        shares = self.processes.sum(torch.tensor(self.waiting.share, dtype=torch.float64))
        waited = round(shares.item() / self.processes.world_size, 4)
        row = {"epoch": self.epoch, "lr": learning_rate(self.variant, self.epoch), "waited": waited}
        top1, top5 = self._accuracy()
        self.waiting.restart()  # training has not waited for the images of a measurement
        return row | {"top1": top1, "top5": top5}

    def _accuracy(self) -> tuple[float, float] | tuple[None, None]:
        """Top-1 and top-5 on all validation images, one crop, by statistics estimated for it (Alg. 2, line 10)."""
        if not all(parameter.isfinite().all() for parameter in self.model.parameters()):
            return None, None
        if self.variant.batch_norm:
            stream = self._placed(self.statistics_batches.batches(self.step))
            batches = [images for images, _ in islice(stream, STATISTICS_BATCHES)]
            try:
                with self._autocast():
                    recalibrate(self.model, batches)
            except BatchNormError:  # on all processes alike: no batch is left whose activations are finite
                return None, None
        top1, top5, count = self.processes.sum(self._count_correct()).tolist()
        if not count:
            raise BatchNormError(f"none of the {len(self.val_images)} validation images can be read")
        return top1 / count, top5 / count

    @property
    def epoch(self) -> float:
        """How often the training set has been gone through, by all processes together."""
        return self.step / self.batches.sampler.steps_per_epoch

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        images = self.batches.source
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "classes": list(images.classes),
            "channels": images.channels,
            "processes": self.processes.world_size,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        before, now = state.get("processes", self.processes.world_size), self.processes.world_size
        if before != now and self.processes.rank == 0:
            LOG.warning("this run had %d processes and goes on with %d: other mini-batches, other epochs", before, now)

    def _image_batches(self, images: Images, seed: int) -> ImageBatches:
        config, processes = self.config, self.processes
        distort = Distort(config.size, self.variant.distortion)
        shuffle = self.variant.within_shard_shuffle
        options = {"seed": seed, "within_shard": shuffle, "processes": processes, "workers": config.workers}
        return ImageBatches(images, distort, config.batch_size, **options)

    def _placed(self, stream: Iterator[Batch], passing_over: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """The images and labels of the batches, where the network is; what is damaged is counted.

        `passing_over`: also whole batches that are damaged; in training the steps would no longer be numbered.
        """
        for batch in stream:
            self.damage.record(batch.damaged)
            if not len(batch.labels):
                if not passing_over:
                    raise BatchNormError(f"every image of a mini-batch is damaged, such as {batch.damaged[0]}")
                continue
            images = normalize(batch.images.to(self.processes.device, non_blocking=True))
            labels = batch.labels.to(self.processes.device, non_blocking=True)
            yield images.contiguous(memory_format=self.config.memory_format), labels

    def _count_correct(self) -> Tensor:
        """(top-1, top-5, images), float64, of this process's part of the validation images."""
        config = self.config
        stream = evaluation_batches(self.val_images, config.size, 1, EVALUATION_BATCH, self.processes, config.workers)
        counts = torch.zeros(3, dtype=torch.float64)
        for images, labels in self._placed(stream, passing_over=True):
            with self._autocast():
                logits = self.model(images)
            counts += count_hits(logits, labels)
        return counts

    def _autocast(self) -> torch.autocast:
        low = self.config.precision == "bfloat16"
        return torch.autocast(self.processes.device.type, torch.bfloat16, enabled=low)


def run_variant(
    trainer: Trainer,
    run: Run | None,
    checkpoint: Checkpoint | None,
    report: Callable[[Row], None],
    stop: Event,
    progress: Callable[[int, Tensor], None] | None = None,
) -> None:
    """Train into `run`, from its checkpoint if it has one.

    Arguments:
        trainer: of the same config on all processes.
        run, checkpoint: rank 0's; None on the others.
        report: called with each row as it is measured, on rank 0.
        stop: set it (Ctrl-C) and all processes end at the next step, with a checkpoint to resume from.
        progress: called with the number of steps done and the loss, after each step, on every process.

    Raises:
        BatchNormError: too many images are damaged; the run cannot be written.
    """
    if run is not None and checkpoint is not None:
        reached = (checkpoint.load() or {"step": -1})["step"]
        run.replace_rows([row for row in run.rows() if row["step"] <= reached])

    def record(row: Row) -> None:
        if run is not None:
            run.append(row)
            report(row)

    seconds = 60 * trainer.config.checkpoint_minutes
    train(trainer, record, stop, checkpoint, processes=trainer.processes, checkpoint_seconds=seconds, progress=progress)


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The L2 weight is for the weights: of gamma, beta and biases the paper says nothing, and they are left alone."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() == 1]},
    ]


def _number(*numbers: int) -> int:
    """A seed that depends on all `numbers`."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
