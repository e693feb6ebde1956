"""Choose the images of every mini-batch: a permutation an epoch, shared by the processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ...errors import BatchNormError


class EpochOrder:
    """The order of the images in each epoch: shard after shard, the shards in a new order each time.

    Arguments:
        shards: the number of images in each shard.
        seed: seed of the order.
        within_shard: shuffle the images of each shard in each epoch too (Sec. 4.2.1: "more thorough"). Otherwise
            neighbors in a shard stay neighbors, and meet in mini-batches again and again.
    """

    def __init__(self, shards: Sequence[int], seed: int, within_shard: bool) -> None:
        self.sizes, self.seed, self.within_shard = np.array(shards), seed, within_shard
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.images = int(self.sizes.sum())
        self._epochs: dict[int, np.ndarray] = {}

    def epoch(self, epoch: int) -> np.ndarray:
        """Return the numbers of all images in the order of this epoch. The first epoch is 0."""
        if epoch not in self._epochs:
            # Keep the epoch before, since a batch may straddle two. An lru_cache could not be pickled for workers.
            self._epochs = {kept: order for kept, order in self._epochs.items() if kept == epoch - 1}
            self._epochs[epoch] = self._draw(epoch)
        return self._epochs[epoch]

    def _draw(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, epoch])
        parts = [self.starts[shard] + np.arange(int(self.sizes[shard])) for shard in rng.permutation(len(self.sizes))]
        return np.concatenate([rng.permutation(part) for part in parts] if self.within_shard else parts)


class Draw(NamedTuple):
    """One image of a mini-batch, and the epoch that it is drawn in."""

    epoch: int
    image: int


class BatchSampler:
    """The images of the mini-batches of one process, as a function of the step.

    In every epoch each image comes up exactly once over all processes. Each process takes a contiguous part of the
    epoch's order, and so reads few shards. Batches straddle epochs, so no image is dropped. Where the images do not
    divide evenly, the processes take turns with the extra image, so none is more than one image ahead.
    """

    def __init__(self, order: EpochOrder, batch_size: int, rank: int, world_size: int) -> None:
        if order.images < world_size:
            raise BatchNormError(f"{order.images} images are too few for {world_size} processes; start fewer")
        self.order, self.batch_size, self.rank, self.world_size = order, batch_size, rank, world_size
        self.steps_per_epoch = order.images / (batch_size * world_size)

    def batch(self, step: int) -> list[Draw]:
        """Return the images of batch `step`, from 0."""
        images, world_size, rank = self.order.images, self.world_size, self.rank
        draws = []
        for position in range(step * self.batch_size, (step + 1) * self.batch_size):
            # The last epoch e with taken(e, rank) <= position.
            epoch = ((position + 1) * world_size - 1 - rank) // images
            first = self.taken_before(epoch + 1, rank) - self.taken_before(epoch, rank)
            place = first + position - self.taken(epoch, rank)
            draws.append(Draw(epoch, int(self.order.epoch(epoch)[place])))
        return draws

    def taken(self, epochs: int, rank: int) -> int:
        """Return how many images `rank` has drawn after `epochs` epochs. All ranks together draw epochs * images."""
        return (epochs * self.order.images + rank) // self.world_size

    def taken_before(self, epochs: int, rank: int) -> int:
        """Return the sum of `taken` over the ranks below this one, which differ by one at most."""
        each, left = divmod(epochs * self.order.images, self.world_size)
        return rank * each + max(0, rank - self.world_size + left)
