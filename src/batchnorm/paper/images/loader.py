"""Load mini-batches of images: numbered, and the same for any number of workers."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..training.processes import ALONE, Processes, cores_each
from .crops import center_crop, crops_144
from .damage import DamagedImage
from .distortions import Distort
from .interface import Images
from .sampler import BatchSampler, EpochOrder


@dataclass(frozen=True)
class Batch:
    """A mini-batch of N readable images; N can be 0.

    Attributes:
        images: (N, C, H, W) or (N, crops, C, H, W), uint8.
        labels: (N,), int64.
        damaged: the images left out because they cannot be read.
    """

    images: Tensor
    labels: Tensor
    damaged: tuple[DamagedImage, ...]


class ImageBatches(Dataset):
    """The training mini-batches of one process. Batch `step` is a function of its number and these settings.

    Arguments:
        images: the images to draw from.
        distort: distorts each image anew in each epoch.
        batch_size: images a batch.
        seed: seed of the order and of the distortions.
        within_shard: see `EpochOrder`.
        processes: the processes that share the images.
        workers: processes that read images; by default `default_workers`.
    """

    def __init__(
        self,
        images: Images,
        distort: Distort,
        batch_size: int,
        *,
        seed: int,
        within_shard: bool,
        processes: Processes = ALONE,
        workers: int | None = None,
    ) -> None:
        self.source, self.distort, self.seed = images, distort, seed
        order = EpochOrder(images.shards, seed, within_shard)
        self.sampler = BatchSampler(order, batch_size, processes.rank, processes.world_size)
        self.workers = default_workers(images) if workers is None else workers

    def __getitem__(self, step: int) -> Batch:
        samples = []
        for epoch, number in self.sampler.batch(step):
            rng = np.random.default_rng([self.seed, epoch, number])
            samples.append(_sample(self.source, number, lambda image, rng=rng: self.distort(image, rng)))
        return _collate(samples)

    def batches(self, first_step: int) -> Iterator[Batch]:
        """Yield the batches from `first_step` on, without end."""
        return iter(_loader(self, count(first_step), self.workers))


class _EvaluationBatches(Dataset):
    """The batches of images first to last - 1, in order."""

    def __init__(self, images: Images, size: int, crops: int, batch_size: int, first: int, last: int) -> None:
        self.source, self.batch_size, self.first, self.last = images, batch_size, first, last
        self.size, self.crops = size, crops

    def __getitem__(self, batch: int) -> Batch:
        first = self.first + batch * self.batch_size
        view = center_crop if self.crops == 1 else crops_144
        numbers = range(first, min(first + self.batch_size, self.last))
        return _collate([_sample(self.source, number, lambda image: view(image, self.size)) for number in numbers])


def evaluation_batches(
    images: Images, size: int, crops: int, batch_size: int, processes: Processes, workers: int | None
) -> Iterator[Batch]:
    """Yield every image of this process's part once, in order: its center crop, or its 144 crops.

    Arguments:
        images: the images to evaluate.
        size: side of the crops.
        crops: 1 or 144.
        batch_size: images a batch.
        processes: the processes that share the images.
        workers: processes that read images; by default `default_workers`.
    """
    first, last = (len(images) * part // processes.world_size for part in (processes.rank, processes.rank + 1))
    part = _EvaluationBatches(images, size, crops, batch_size, first, last)
    batches = range(-(-(last - first) // batch_size))
    return iter(_loader(part, batches, default_workers(images) if workers is None else workers))


def default_workers(images: Images) -> int:
    """Return one worker a core, divided among the processes of this machine. Images in memory need no workers."""
    return 0 if images.in_memory else cores_each()


def _loader(batches: Dataset, numbers: Iterable[int], workers: int) -> Iterable[Batch]:
    return DataLoader(
        batches,
        batch_size=None,
        sampler=numbers,  # pyright: ignore[reportArgumentType]  (any iterable works)
        num_workers=workers,
        worker_init_fn=_ignore_interrupts,
        pin_memory=torch.cuda.is_available(),
    )


def _ignore_interrupts(worker: int) -> None:  # noqa: ARG001
    """Leave Ctrl-C to the process that trains, which stops its workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _sample(images: Images, number: int, view: Callable[[Tensor], Tensor]) -> tuple[Tensor, int] | DamagedImage:
    """Return `view` of an image and its label, or the error if the image is damaged."""
    try:
        return view(images.read(number)), images.label(number)
    except DamagedImage as error:
        return error


def _collate(samples: list[tuple[Tensor, int] | DamagedImage]) -> Batch:
    whole = [sample for sample in samples if not isinstance(sample, DamagedImage)]
    damaged = tuple(sample for sample in samples if isinstance(sample, DamagedImage))
    if not whole:
        return Batch(torch.empty(0), torch.empty(0, dtype=torch.long), damaged)
    return Batch(torch.stack([image for image, _ in whole]), torch.tensor([label for _, label in whole]), damaged)
