"""The images of every mini-batch: each image once an epoch over all processes."""

import pickle
from collections import Counter
from itertools import pairwise, product

import numpy as np
import pytest

import batchnorm as bn
from batchnorm.paper.images.sampler import BatchSampler, EpochOrder

SHARDS = (17, 17, 16)  # 50 images


def sampler(within_shard=True, rank=0, world_size=1, batch_size=8):
    return BatchSampler(EpochOrder(SHARDS, 7, within_shard), batch_size, rank, world_size)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("within_shard", [False, True])
def test_every_image_comes_up_once_an_epoch_over_all_ranks(world_size, within_shard):
    seen = Counter()
    for rank in range(world_size):
        own = sampler(within_shard, rank, world_size)
        for step in range(40):
            seen.update(own.batch(step))
    whole = [epoch for epoch in range(4) if sum(count for (e, _), count in seen.items() if e == epoch) == 50]
    assert len(whole) >= 3  # of 50 images, in 40 steps of 8: 6.4 epochs for one rank
    assert all(seen[epoch, number] == 1 for epoch in whole for number in range(50))
    assert max(seen.values()) == 1


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_ranks_never_drift_apart(world_size):
    """Every rank ends an epoch after the same number of batches of one image, within 1.

    Parts of fixed sizes, 16 and 17 of 50, would be 1,000 images apart after 1,000 epochs.
    """
    steps = round(1000 * 50 / world_size)
    for rank in range(world_size):
        own = sampler(rank=rank, world_size=world_size, batch_size=1)
        assert own.batch(steps - 2)[0][0] == 999
        assert own.batch(steps + 1)[0][0] == 1000


def test_an_epoch_has_so_many_steps():
    assert sampler(world_size=3, batch_size=4).steps_per_epoch == pytest.approx(50 / 3 / 4)


@pytest.mark.parametrize("world_size", [2, 3])
def test_each_rank_takes_a_contiguous_part_of_the_epochs_order(world_size):
    for rank in range(world_size):
        own = sampler(rank=rank, world_size=world_size, batch_size=1)
        taken = [own.batch(step)[0] for step in range(100)]
        for epoch in range(4):
            places = [own.order.epoch(epoch).tolist().index(number) for e, number in taken if e == epoch]
            assert places == list(range(places[0], places[0] + len(places)))
            assert len(places) in (50 // world_size, 50 // world_size + 1)


def test_a_pickled_sampler_draws_the_same_batches():
    own = sampler()
    own.batch(0)
    assert pickle.loads(pickle.dumps(own)).batch(13) == own.batch(13)


def test_shards_are_read_one_after_another_in_a_new_order_each_epoch():
    order = EpochOrder(SHARDS, seed=1, within_shard=True)
    starts = np.cumsum([0, *SHARDS])
    epochs = []
    for epoch in range(6):
        shard_of = np.searchsorted(starts, order.epoch(epoch), side="right")
        changes = [int(shard_of[0]), *(int(b) for a, b in pairwise(shard_of) if a != b)]
        assert sorted(changes) == [1, 2, 3]
        epochs.append(tuple(changes))
    assert len(set(epochs)) > 1


def test_only_within_shard_shuffling_separates_neighbors():
    fixed, shuffled = EpochOrder([5, 5], 1, within_shard=False), EpochOrder([5, 5], 1, within_shard=True)
    for epoch in range(4):
        parts = fixed.epoch(epoch).reshape(2, 5)
        assert (np.diff(parts) == 1).all()  # Neighbors stay neighbors.
    assert any((np.diff(shuffled.epoch(epoch).reshape(2, 5)) != 1).any() for epoch in range(4))


def test_the_closed_form_of_the_images_of_lower_ranks():
    """Compare the closed form with the sum over the ranks below."""
    for world_size in range(1, 51):
        own = sampler(world_size=world_size)
        for epochs, rank in product(range(4), range(world_size)):
            assert own.taken_before(epochs, rank) == sum(own.taken(epochs, below) for below in range(rank))


def test_more_processes_than_images_is_an_error():
    with pytest.raises(bn.BatchNormError, match="50 images are too few for 51 processes; start fewer"):
        sampler(rank=0, world_size=51)
