"""Generated JPEGs, and a finished run that tests read but do not change."""

from dataclasses import replace

import pytest
from support.commands import preload
from support.inception_runs import TINY, train
from support.jpegs import damage, jpeg_shards, jpeg_tree

from batchnorm.paper.images.sources import open_images
from batchnorm.paper.inception.variants import BN_X5


@pytest.fixture(autouse=True, scope="session")
def _preloaded():
    preload()


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    """Return the path of 15 training and 5 validation images a class, in class folders."""
    return str(jpeg_tree(tmp_path_factory.mktemp("tree"), train=15, val=5))


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """Return the path of the same images in shards."""
    return str(jpeg_shards(tmp_path_factory.mktemp("shards"), train=15, val=5))


@pytest.fixture(scope="session")
def finished(tree, tmp_path_factory):
    """Train BN-x5 without a stop, and return its run."""
    return train(tmp_path_factory.mktemp("runs") / "finished", BN_X5, replace(TINY, data=tree))


@pytest.fixture
def damaged(tmp_path):
    """Return the path of a tree whose last validation image cannot be read."""
    folder = jpeg_tree(tmp_path / "damaged", train=2, val=1)
    images = open_images(str(folder), "val")
    damage(images.name(len(images) - 1))
    return folder
