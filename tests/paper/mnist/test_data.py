"""MNIST in the package, and IDX files of a user."""

import gzip
import importlib.util
import os
import struct

import numpy as np
import pytest
import torch
from support.paths import ROOT

import batchnorm as bn
from batchnorm.paper.mnist.data import IDX_NAMES, PACKED, load_mnist

SCRIPT = ROOT / "tools" / "pack_mnist.py"


@pytest.fixture(scope="module")
def packing():
    spec = importlib.util.spec_from_file_location("pack_mnist", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def mnist():
    return load_mnist()


def test_the_packed_set_has_the_thresholded_sources_counts(mnist, packing):
    for name, pixels in packing.PIXELS_ON.items():
        assert int(getattr(mnist, name).sum(dtype=torch.long)) == pixels
    for name, counts in packing.LABELS.items():
        assert torch.bincount(getattr(mnist, name)).tolist() == counts


def test_the_packed_set_has_the_recorded_checksums(packing):
    with np.load(PACKED, allow_pickle=False) as packed:
        assert {name: packing.sha256(packed[name].tobytes()) for name in packed} == packing.RESULT_SHA256
    assert PACKED.stat().st_size < 2.2e6


def test_images_are_binary_and_upright(mnist):
    assert mnist.train_images.shape == (60_000, 784)
    assert mnist.test_images.shape == (10_000, 784)
    assert mnist.train_images.unique().tolist() == [0, 1]
    # The mean 1 is a vertical stroke: its middle column is lit far more than its middle row's ends.
    one = mnist.train_images[mnist.train_labels == 1].float().mean(0).view(28, 28)
    assert one[8:20, 13:15].mean() > 0.5
    assert one[14, :8].mean() < 0.05


def write_idx(path, array, compress=False):
    content = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if compress else content)


@pytest.fixture
def idx_folder(tmp_path):
    generator = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 10)):
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        write_idx(tmp_path / IDX_NAMES[f"{split}_images"], images)
        write_idx(tmp_path / f"{IDX_NAMES[f'{split}_labels']}.gz", generator.integers(0, 10, count, np.uint8), True)
    return tmp_path


def test_own_idx_files_gzipped_or_not(idx_folder):
    data = load_mnist(idx_folder)
    raw = (idx_folder / IDX_NAMES["train_images"]).read_bytes()[16:]
    assert data.train_images.flatten().tolist() == [int(gray > 127) for gray in raw]
    assert data.test_labels.shape == (10,)
    assert data.train_labels.dtype == torch.int64


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train_images", None, "has neither train-images-idx3-ubyte nor train-images-idx3-ubyte.gz"),
        ("train_images", b"\x89PNG\r\n\x1a\n", "not an IDX file of bytes: it starts with 89 50 4e 47"),
        ("train_images", b"", "not an IDX file of bytes: it starts with nothing"),
        ("train_images", b"\0\0\x08\x03\0\0", "not an IDX file of bytes"),
        ("train_images", b"\0\0\x0d\x01\0\0\0\x01abcd", "not an IDX file of bytes"),
        ("train_images", b"\0\0\x08\x01\0\0\0\x05abc", r"announces \(5,\), 5 values, and holds 3: truncated"),
        ("train_images", b"\0\0\x08\x01\0\0\0\x02ab", r"train images have shape \(2,\) and the labels \(20,\); wanted"),
        ("train_labels", b"\0\0\x08\x01\0\0\0\x14" + b"\x0b" * 20, "a train label is 11; wanted 0 to 9"),
        ("train_labels", b"\0\0\x08\x01\0\0\0\x02ab", r"the labels \(2,\); wanted"),
    ],
)
def test_foreign_and_truncated_files_are_named(idx_folder, name, content, message):
    (idx_folder / f"{IDX_NAMES[name]}.gz").unlink(missing_ok=True)
    (idx_folder / IDX_NAMES[name]).unlink(missing_ok=True)
    if content is not None:
        (idx_folder / IDX_NAMES[name]).write_bytes(content)
    with pytest.raises(bn.BatchNormError, match=message) as caught:
        load_mnist(idx_folder)
    assert str(idx_folder) in str(caught.value)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[:-6] + b"xxxxxx"])
def test_damaged_gzip_is_named(idx_folder, damage):
    path = idx_folder / f"{IDX_NAMES['test_labels']}.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(bn.BatchNormError, match=r"t10k-labels-idx1-ubyte.gz cannot be read"):
        load_mnist(idx_folder)


def test_a_missing_folder_says_what_is_wanted(tmp_path):
    with pytest.raises(bn.BatchNormError, match="wants a folder with the four IDX files"):
        load_mnist(tmp_path / "nowhere")


def test_an_idx_file_that_is_a_fifo_is_one_line(idx_folder):
    (idx_folder / IDX_NAMES["train_images"]).unlink()
    os.mkfifo(idx_folder / IDX_NAMES["train_images"])
    with pytest.raises(bn.BatchNormError, match=r"train-images-idx3-ubyte is a FIFO; wanted a regular file"):
        load_mnist(idx_folder)
