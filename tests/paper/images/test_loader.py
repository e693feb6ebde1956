"""Numbered mini-batches: every image once an epoch over all processes, the same for any number of workers."""

import os
import pickle
from collections import Counter
from itertools import islice, pairwise, product

import numpy as np
import pytest
import torch
from support.jpegs import jpeg_shards, jpeg_tree

import batchnorm as bn
from batchnorm.paper.images import loader
from batchnorm.paper.images.distortions import Distort
from batchnorm.paper.images.loader import Damage, ImageBatches, Order, Waiting, default_workers, evaluation_batches
from batchnorm.paper.images.sources import DamagedImage, open_images


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return open_images(str(jpeg_shards(tmp_path_factory.mktemp("shards"), train=5, val=3)), "train")


def batches(images, within_shard=True, rank=0, world_size=1, workers=0, batch_size=8):
    return ImageBatches(images, Distort(32, "strong"), batch_size, 7, within_shard, rank, world_size, workers)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("within_shard", [False, True])
def test_every_image_comes_up_once_an_epoch_over_all_ranks(shards, world_size, within_shard):
    seen = Counter()
    for rank in range(world_size):
        own = batches(shards, within_shard, rank, world_size)
        for step in range(40):
            seen.update(own.numbers(step))
    whole = [epoch for epoch in range(4) if sum(count for (e, _), count in seen.items() if e == epoch) == 50]
    assert len(whole) >= 3  # of 50 images, in 40 steps of 8: 6.4 epochs for one rank
    assert all(seen[epoch, number] == 1 for epoch in whole for number in range(50))
    assert max(seen.values()) == 1


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_ranks_never_drift_apart(shards, world_size):
    """Batches of one image: rank by rank they have had all of an epoch after the same number of steps, give or take 1.

    Parts of fixed sizes, 16 and 17 of 50, would be 1,000 images apart after 1,000 epochs.
    """
    steps = round(1000 * 50 / world_size)
    for rank in range(world_size):
        own = batches(shards, rank=rank, world_size=world_size, batch_size=1)
        assert own.numbers(steps - 2)[0][0] == 999
        assert own.numbers(steps + 1)[0][0] == 1000
    assert own.steps_per_epoch == pytest.approx(50 / world_size)


@pytest.mark.parametrize("world_size", [2, 3])
def test_each_rank_takes_a_contiguous_part_of_the_epochs_order(shards, world_size):
    for rank in range(world_size):
        own = batches(shards, rank=rank, world_size=world_size, batch_size=1)
        taken = [own.numbers(step)[0] for step in range(100)]
        for epoch in range(4):
            places = [own.order.epoch(epoch).tolist().index(number) for e, number in taken if e == epoch]
            assert places == list(range(places[0], places[0] + len(places)))
            assert len(places) in (50 // world_size, 50 // world_size + 1)


def test_workers_that_are_not_forked_get_the_same_batches(shards):
    own = batches(shards)
    own.numbers(0)
    assert pickle.loads(pickle.dumps(own)).numbers(13) == own.numbers(13)


@pytest.mark.parametrize(("trainings", "workers"), [("1", 8), ("3", 2), ("16", 1)])
def test_the_trainings_of_a_machine_share_its_cores(shards, monkeypatch, trainings, workers):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", trainings)
    assert default_workers(shards) == workers


def test_shards_are_read_one_after_another_in_a_new_order_each_epoch(shards):
    order = Order(shards.shards, seed=1, within_shard=True)
    starts = np.cumsum([0, *shards.shards])
    epochs = []
    for epoch in range(6):
        shard_of = np.searchsorted(starts, order.epoch(epoch), side="right")
        changes = [int(shard_of[0]), *(int(b) for a, b in pairwise(shard_of) if a != b)]
        assert sorted(changes) == [1, 2, 3]
        epochs.append(tuple(changes))
    assert len(set(epochs)) > 1


def test_within_shard_shuffling_is_what_it_says():
    fixed, shuffled = Order([5, 5], 1, within_shard=False), Order([5, 5], 1, within_shard=True)
    for epoch in range(4):
        parts = fixed.epoch(epoch).reshape(2, 5)
        assert (np.diff(parts) == 1).all()  # neighbours stay neighbours
    assert any((np.diff(shuffled.epoch(epoch).reshape(2, 5)) != 1).any() for epoch in range(4))


def test_a_batch_is_the_same_for_any_number_of_workers_and_any_start(shards):
    alone = list(islice(batches(shards, workers=0).batches(0), 9))
    for workers, first in ((2, 0), (2, 4), (0, 4)):
        for ours, theirs in zip(
            islice(batches(shards, workers=workers).batches(first), 5), alone[first:], strict=False
        ):
            assert ours.images.equal(theirs.images)
            assert ours.labels.equal(theirs.labels)
    assert alone[0].images.shape == (8, 3, 32, 32)
    assert alone[0].images.dtype == torch.uint8


def test_an_image_is_distorted_anew_in_each_epoch(shards):
    own = batches(shards, batch_size=50)
    places = [own.order.epoch(epoch).tolist().index(0) for epoch in (0, 1)]
    first, second = (own[epoch].images[place] for epoch, place in zip((0, 1), places, strict=True))
    assert not first.equal(second)


def test_damaged_images_are_left_out_and_named(tmp_path):
    folder = jpeg_tree(tmp_path, train=1, val=1)
    (folder / "train" / "class0" / "bad.jpg").write_bytes(b"no image")
    images = open_images(str(folder), "train")
    batch = ImageBatches(images, Distort(32, "none"), 11, 1, True)[0]
    assert (len(batch.images), len(batch.labels), len(batch.damaged)) == (10, 10, 1)
    assert str(batch.damaged[0]).endswith("class0/bad.jpg: not an image, or of an unknown format")


def test_a_batch_of_damaged_images_alone_is_empty(tmp_path):
    folder = jpeg_tree(tmp_path, train=1, val=1)
    for path in (folder / "train").rglob("*.jpg"):
        path.write_bytes(b"no image")
    own = ImageBatches(open_images(str(folder), "train"), Distort(32, "none"), 4, 1, True, workers=1)
    batch = next(own.batches(0))  # by a worker, which sends the damage pickled
    assert (len(batch.images), len(batch.labels)) == (0, 0)
    assert all(image.name.endswith(".jpg") for image in batch.damaged)


def test_a_rank_far_out_finds_its_part_at_once(shards):
    """The sum over the ranks below, in closed form, against the sum."""
    for world_size in range(1, 51):
        own = batches(shards, world_size=world_size)
        for epochs, rank in product(range(4), range(world_size)):
            assert own._taken_before(epochs, rank) == sum(own._taken(epochs, below) for below in range(rank))


def test_damage_is_logged_by_name_up_to_a_limit(caplog):
    damage = Damage(2)
    damage.count([DamagedImage("a.jpg", "truncated"), DamagedImage("b.jpg", "empty")])
    assert [record.getMessage() for record in caplog.records] == [
        "passed over a damaged image: a.jpg: truncated",
        "passed over a damaged image: b.jpg: empty",
    ]
    with pytest.raises(bn.BatchNormError, match=r"more images are damaged than --max-damaged 2; the last is c\.jpg"):
        damage.count([DamagedImage("c.jpg", "text")])


def test_waiting_is_what_a_batch_takes_to_come_not_what_is_done_with_it(monkeypatch):
    clock = 0.0
    monkeypatch.setattr(loader.time, "perf_counter", lambda: clock)

    def slow():
        nonlocal clock
        for number in range(3):
            clock += 1
            yield number

    waiting = Waiting()
    batches = waiting.timed(slow())
    for number in range(2):
        assert next(batches) == number
        clock += 3
    assert waiting.share == 2 / 8
    waiting.restart()
    clock += 1
    next(batches)
    assert waiting.share == 1 / 2


def test_more_processes_than_images_is_an_error(shards):
    with pytest.raises(bn.BatchNormError, match="50 images do not go round 51 processes"):
        batches(shards, rank=0, world_size=51)


@pytest.mark.parametrize("crops", [1, 144])
@pytest.mark.parametrize("world_size", [1, 3])
def test_evaluation_sees_every_image_once_in_order(shards, crops, world_size):
    labels = []
    for rank in range(world_size):
        for batch in evaluation_batches(shards, 28, crops, 4, rank, world_size, 0):
            assert batch.images.shape[1:] == ((3, 28, 28) if crops == 1 else (144, 3, 28, 28))
            labels += batch.labels.tolist()
    assert labels == [shards.label(number) for number in range(50)]


def test_an_image_damaged_in_every_epoch_counts_once(caplog):
    damage = Damage(1)
    for place in range(5):  # decoders name objects in memory, which are others each time
        damage.count([DamagedImage("a.jpg", f"truncated at {place}")])
    assert len(caplog.records) == 1
