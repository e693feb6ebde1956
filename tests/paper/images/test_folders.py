"""Images in class folders."""

import numpy as np
import pytest
from support.jpegs import CLASSES, jpeg, jpeg_tree

import batchnorm as bn
from batchnorm.paper.images.damage import DamagedImage
from batchnorm.paper.images.folders import FolderImages


def names(folder):
    images = FolderImages(folder)
    return [images.name(number) for number in range(len(images))]


def test_folders_are_the_classes(tree):
    images = FolderImages(tree / "train")
    assert images.classes == CLASSES
    assert images.shards == [30]


def test_the_images_are_shuffled_in_a_fixed_order(tree):
    assert names(tree / "train") == names(tree / "train")
    assert names(tree / "train") != sorted(names(tree / "train"))


def test_images_in_linked_and_nested_folders_are_found(tmp_path):
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere" / "deep" / "A.JPG").write_bytes(jpeg(1, np.random.default_rng(0)))
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "train" / "cat" / "link").symlink_to(tmp_path / "elsewhere")
    assert names(tmp_path / "train") == [str(tmp_path / "train/cat/link/deep/A.JPG")]


def test_a_damaged_image_is_named(tmp_path):
    folder = jpeg_tree(tmp_path / "tree", train=1, val=1) / "train"
    (folder / "class0" / "bad.jpg").write_bytes(b"not an image")
    images = FolderImages(folder)
    (number,) = (n for n, name in enumerate(names(folder)) if name.endswith("bad.jpg"))
    with pytest.raises(DamagedImage, match=r"class0/bad\.jpg: not an image"):
        images.read(number)


def test_an_empty_class_is_an_error(tmp_path):
    folder = jpeg_tree(tmp_path, train=1, val=1) / "train"
    (folder / "empty").mkdir()
    with pytest.raises(bn.BatchNormError, match=r"the class folder .*train/empty has no images"):
        FolderImages(folder)


def test_a_folder_without_class_folders_is_an_error(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(bn.BatchNormError, match=r"train has no class folders; wanted train/CLASS/IMAGE\.jpg"):
        FolderImages(tmp_path / "train")
