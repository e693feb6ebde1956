"""Which images make up a mini-batch, and getting them there: numbered batches, the same for any number of workers."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...errors import BatchNormError
from ..training.processes import cores_each
from .distortions import Distort, centre_crop, crops_144
from .sources import DamagedImage, FashionImages, Images

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """images (N, C, H, W) or (N, crops, C, H, W), uint8; labels (N,), int64; those left out. N can be 0."""

    images: Tensor
    labels: Tensor
    damaged: tuple[DamagedImage, ...]


class Damage:
    """Counts the images that could not be read, and logs each by name; those of later epochs are the same ones.

    Raises:
        BatchNormError: from `count`, past `limit` of them.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self._names = limit, set()

    def count(self, images: Iterable[DamagedImage]) -> None:
        """Log these too."""
        for image in images:
            if image.name in self._names:
                continue
            self._names.add(image.name)
            LOG.warning("passed over a damaged image: %s", image)
            if len(self._names) > self.limit:
                raise BatchNormError(f"more images are damaged than --max-damaged {self.limit}; the last is {image}")


class Waiting:
    """The share of its time that a training waits for its batches."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Count from now on."""
        self._start, self._waited = time.perf_counter(), 0.0

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches; what each takes to come is waited, what its taker does with it is not."""
        asked = time.perf_counter()
        for batch in batches:
            self._waited += time.perf_counter() - asked
            yield batch
            asked = time.perf_counter()

    @property
    def share(self) -> float:
        """Of the time since `restart`, 0 to 1."""
        return self._waited / (time.perf_counter() - self._start)


class Order:
    """The order in which each epoch goes through the images: shard after shard, the shards in a new order each time.

    Arguments:
        shards: number of images in each.
        within_shard: also shuffle the images of each shard anew (Sec. 4.2.1: "more thorough"); else neighbours stay
            neighbours, and meet in the same mini-batches again and again.
    """

    def __init__(self, shards: Iterable[int], seed: int, within_shard: bool) -> None:
        self.sizes, self.seed, self.within_shard = np.array(list(shards)), seed, within_shard
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.images = int(self.sizes.sum())
        self._epochs: dict[int, np.ndarray] = {}

    def epoch(self, epoch: int) -> np.ndarray:
        """The numbers of all images in the order of this epoch, from 0."""
        if epoch not in self._epochs:
            # A batch may straddle two. (No lru_cache: workers that are not forked get this object pickled.)
            self._epochs = {kept: order for kept, order in self._epochs.items() if kept == epoch - 1}
            self._epochs[epoch] = self._drawn(epoch)
        return self._epochs[epoch]

    def _drawn(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, epoch])
        parts = [self.starts[shard] + np.arange(int(self.sizes[shard])) for shard in rng.permutation(len(self.sizes))]
        return np.concatenate([rng.permutation(part) for part in parts] if self.within_shard else parts)


class ImageBatches(Dataset):
    """The mini-batches of one of `world_size` processes: batch `step` is a function of its number and the settings.

    In every epoch each image comes up exactly once over all processes: each takes a contiguous part of the epoch's
    order, and so reads few shards. Batches straddle the epochs, so nothing is dropped; where the images do not divide
    evenly, they take turns with the image more, so that none is ever further than one image ahead.
    """

    def __init__(
        self,
        images: Images,
        distort: Distort,
        batch_size: int,
        seed: int,
        within_shard: bool,
        rank: int = 0,
        world_size: int = 1,
        workers: int | None = None,
    ) -> None:
        self.source, self.distort, self.batch_size, self.seed = images, distort, batch_size, seed
        self.order = Order(images.shards, seed, within_shard)
        self.rank, self.world_size = rank, world_size
        if self.order.images < world_size:
            raise BatchNormError(f"{self.order.images} images do not go round {world_size} processes; start fewer")
        self.workers = default_workers(images) if workers is None else workers
        self.steps_per_epoch = self.order.images / (batch_size * world_size)

    def numbers(self, step: int) -> list[tuple[int, int]]:
        """(epoch, image) of each image of batch `step`, from 0."""
        images, world_size, rank = self.order.images, self.world_size, self.rank
        numbers = []
        for position in range(step * self.batch_size, (step + 1) * self.batch_size):
            # The last epoch e with _taken(e, rank) <= position.
            epoch = ((position + 1) * world_size - 1 - rank) // images
            first = self._taken_before(epoch + 1, rank) - self._taken_before(epoch, rank)
            place = first + position - self._taken(epoch, rank)
            numbers.append((epoch, int(self.order.epoch(epoch)[place])))
        return numbers

    def _taken(self, epochs: int, rank: int) -> int:
        """How many images `rank` has had after so many epochs: over all ranks epochs * images, none one ahead."""
        return (epochs * self.order.images + rank) // self.world_size

    def _taken_before(self, epochs: int, rank: int) -> int:
        """The sum of `_taken` over the ranks below this one: they differ by one at most."""
        each, left = divmod(epochs * self.order.images, self.world_size)
        return rank * each + max(0, rank - self.world_size + left)

    def __getitem__(self, step: int) -> Batch:
        samples = []
        for epoch, number in self.numbers(step):
            rng = np.random.default_rng([self.seed, epoch, number])
            samples.append(_sample(self.source, number, lambda image, rng=rng: self.distort(image, rng)))
        return _collated(samples)

    def batches(self, first_step: int) -> Iterator[Batch]:
        """The batches from `first_step` on, without end."""
        return iter(_loader(self, count(first_step), self.workers))


class _Evaluation(Dataset):
    """The batches of one process's part of the images, in order."""

    def __init__(self, images: Images, size: int, crops: int, batch_size: int, first: int, last: int) -> None:
        self.source, self.batch_size, self.first, self.last = images, batch_size, first, last
        self.size, self.crops = size, crops

    def __getitem__(self, batch: int) -> Batch:
        first = self.first + batch * self.batch_size
        view = centre_crop if self.crops == 1 else crops_144
        numbers = range(first, min(first + self.batch_size, self.last))
        return _collated([_sample(self.source, number, lambda image: view(image, self.size)) for number in numbers])


def evaluation_batches(
    images: Images, size: int, crops: int, batch_size: int, rank: int, world_size: int, workers: int | None
) -> Iterator[Batch]:
    """Every image of one process's part once, in order: the centre crop of each, or its 144 crops."""
    first, last = (len(images) * part // world_size for part in (rank, rank + 1))
    part = _Evaluation(images, size, crops, batch_size, first, last)
    batches = range(-(-(last - first) // batch_size))
    return iter(_loader(part, batches, default_workers(images) if workers is None else workers))


def default_workers(images: Images) -> int:
    """A process a core to decode and distort, shared by the trainings of a machine; none for images in memory."""
    return 0 if isinstance(images, FashionImages) else cores_each()


def _loader(batches: Dataset, numbers: Iterable[int], workers: int) -> Iterable[Batch]:
    return DataLoader(
        batches,
        batch_size=None,
        sampler=numbers,  # pyright: ignore[reportArgumentType]  (any iterable will do)
        num_workers=workers,
        worker_init_fn=_leave_interrupts_to_the_trainer,
        pin_memory=torch.cuda.is_available(),
    )


def _leave_interrupts_to_the_trainer(worker: int) -> None:  # noqa: ARG001
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _sample(images: Images, number: int, view: Callable[[Tensor], Tensor]) -> tuple[Tensor, int] | DamagedImage:
    """What `view` makes of an image, and its label; or what is wrong with it."""
    try:
        return view(images.read(number)), images.label(number)
    except DamagedImage as error:
        return error


def _collated(samples: list[tuple[Tensor, int] | DamagedImage]) -> Batch:
    whole = [sample for sample in samples if not isinstance(sample, DamagedImage)]
    damaged = tuple(sample for sample in samples if isinstance(sample, DamagedImage))
    if not whole:
        return Batch(torch.empty(0), torch.empty(0, dtype=torch.long), damaged)
    return Batch(torch.stack([image for image, _ in whole]), torch.tensor([label for _, label in whole]), damaged)
