"""Generated JPEGs, as class folders and as shards of the same images."""

import pytest
from support.jpegs import jpeg_shards, jpeg_tree


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    return jpeg_tree(tmp_path_factory.mktemp("tree"), train=3, val=2)


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    return jpeg_shards(tmp_path_factory.mktemp("shards"), train=3, val=2)
