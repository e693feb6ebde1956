"""Numbered mini-batches of images, the same for any number of workers."""

import os
from itertools import islice

import pytest
import torch
from support.jpegs import jpeg_shards, jpeg_tree

from batchnorm.paper.images.distortions import Distort
from batchnorm.paper.images.fashion import FashionImages
from batchnorm.paper.images.loader import ImageBatches, default_workers, evaluation_batches
from batchnorm.paper.images.sources import open_images
from batchnorm.paper.training.processes import Processes


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return open_images(str(jpeg_shards(tmp_path_factory.mktemp("shards"), train=5, val=3)), "train")


def batches(images, workers=0, batch_size=8):
    return ImageBatches(images, Distort(32, "strong"), batch_size, seed=7, within_shard=True, workers=workers)


@pytest.mark.parametrize(("processes", "workers"), [("1", 8), ("3", 2), ("16", 1)])
def test_the_processes_of_a_machine_share_its_cores(shards, monkeypatch, processes, workers):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert default_workers(shards) == workers


def test_images_in_memory_need_no_worker(shards, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(shards, "in_memory", True)
    assert default_workers(shards) == 0
    assert FashionImages.in_memory


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
    places = [own.sampler.order.epoch(epoch).tolist().index(0) for epoch in (0, 1)]
    first, second = (own[epoch].images[place] for epoch, place in zip((0, 1), places, strict=True))
    assert not first.equal(second)


def test_damaged_images_are_left_out_and_named(tmp_path):
    folder = jpeg_tree(tmp_path, train=1, val=1)
    (folder / "train" / "class0" / "bad.jpg").write_bytes(b"no image")
    images = open_images(str(folder), "train")
    batch = ImageBatches(images, Distort(32, "none"), 11, seed=1, within_shard=True)[0]
    assert (len(batch.images), len(batch.labels), len(batch.damaged)) == (10, 10, 1)
    assert str(batch.damaged[0]).endswith("class0/bad.jpg: not an image, or of an unknown format")


def test_a_batch_of_damaged_images_alone_is_empty(tmp_path):
    folder = jpeg_tree(tmp_path, train=1, val=1)
    for path in (folder / "train").rglob("*.jpg"):
        path.write_bytes(b"no image")
    own = ImageBatches(open_images(str(folder), "train"), Distort(32, "none"), 4, seed=1, within_shard=True, workers=1)
    batch = next(own.batches(0))  # By a worker, which pickles the errors.
    assert (len(batch.images), len(batch.labels)) == (0, 0)
    assert all(image.name.endswith(".jpg") for image in batch.damaged)


@pytest.mark.parametrize("crops", [1, 144])
@pytest.mark.parametrize("world_size", [1, 3])
def test_evaluation_sees_every_image_once_in_order(shards, crops, world_size):
    labels = []
    for rank in range(world_size):
        for batch in evaluation_batches(shards, 28, crops, 4, Processes(rank, world_size), 0):
            assert batch.images.shape[1:] == ((3, 28, 28) if crops == 1 else (144, 3, 28, 28))
            labels += batch.labels.tolist()
    assert labels == [shards.label(number) for number in range(50)]
