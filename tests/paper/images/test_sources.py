"""Open the images that `--data` names, and check that their labels agree."""

import io
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from PIL import Image
from support.jpegs import samples

import batchnorm as bn
from batchnorm.paper.images.interface import Images
from batchnorm.paper.images.sources import check_classes, open_images


def contents(images):
    """Return label -> its images as bytes, in any order."""
    found = {}
    for number in range(len(images)):
        found.setdefault(images.label(number), set()).add(images.read(number).numpy().tobytes())
    return found


def test_folders_and_shards_hold_the_same_images(tree, shards):
    folders, tar = open_images(str(tree), "train"), open_images(str(shards), "train")
    expected = {label: set() for label in range(10)}
    for label, _, content in samples(3, seed=3):
        pixels = np.array(Image.open(io.BytesIO(content)))
        expected[label].add(np.ascontiguousarray(pixels.transpose(2, 0, 1)).tobytes())
    assert contents(folders) == contents(tar) == expected
    assert tar.classes == tuple(map(str, range(10)))
    assert tar.shards == [10, 10, 10]


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(
        bn.BatchNormError, match=r"--data .* is not a folder; wanted one with train and val, or fashion, cifar10"
    ):
        open_images(str(tmp_path / "nowhere"), "train")


def test_a_folder_without_the_split_is_an_error(tmp_path):
    (tmp_path / "val").mkdir()
    with pytest.raises(bn.BatchNormError, match=r"has neither train-\*\.tar nor a folder train"):
        open_images(str(tmp_path), "train")


def labeled(*classes):
    """Return something that has classes, which is all that the check looks at."""
    return cast(Images, SimpleNamespace(classes=classes))


@pytest.mark.parametrize(
    ("val", "trained", "message"),
    [
        (("0", "1", "2"), ("0", "1"), "a label is 2, past the network's 2 classes"),
        (("cat", "cow"), ("cat", "dog"), "1 validation classes were not trained, such as 'cow'"),
        (("dog",), ("cat", "dog"), "classes without validation images, such as 'cat'"),
        (("0", "2"), ("0", "1", "2"), "classes without validation images, such as '1'"),
    ],
)
def test_labels_that_do_not_agree_are_an_error(val, trained, message):
    with pytest.raises(bn.BatchNormError, match=message):
        check_classes(labeled(*val), trained)


def test_fewer_numbered_labels_than_classes_are_fine():
    check_classes(labeled("0", "1"), ("0", "1", "2"))
    check_classes(labeled("cat", "dog"), ("cat", "dog"))
