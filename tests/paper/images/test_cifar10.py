"""CIFAR-10: found in the cache, downloaded, verified. Small archives stand in for the real one."""

import hashlib
import io
import tarfile

import numpy as np
import pytest
from support.jpegs import add

import batchnorm as bn
from batchnorm.errors import DownloadError
from batchnorm.paper.images import cifar10
from batchnorm.paper.images.cifar10 import Cifar10Images
from batchnorm.paper.images.sources import NAMED, open_both
from batchnorm.paper.inception.presets import PRESETS


def records(batch, images=3):
    """Return `images` records: label, then red = batch, green = the number of the row, blue = that of the column."""
    content = b""
    for number in range(images):
        planes = [np.full((32, 32), batch), np.mgrid[:32, :32][0], np.mgrid[:32, :32][1]]
        content += bytes([(batch + number) % 10]) + np.stack(planes).astype(np.uint8).tobytes()
    return content


def archive(path):
    """Write a small archive with the members of CIFAR-10's, out of order, and return its content."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for batch, name in [(9, "test_batch"), *((number, f"data_batch_{number}") for number in (2, 1, 5, 4, 3))]:
            add(tar, f"cifar-10-batches-bin/{name}.bin", records(batch))
        add(tar, "cifar-10-batches-bin/batches.meta.txt", b"airplane\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(packed.getvalue())
    return packed.getvalue()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Return the folder of CIFAR-10 in an empty cache. Nothing can be downloaded."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cifar10, "HOME", "http://localhost:1/")
    return tmp_path / "cache" / "batchnorm" / "cifar-10"


@pytest.fixture
def cached(cache, monkeypatch):
    """Put a small archive into the cache, and take its checksum for CIFAR-10's."""
    content = archive(cache / cifar10.ARCHIVE)
    monkeypatch.setattr(cifar10, "SHA256", hashlib.sha256(content).hexdigest())


@pytest.mark.usefixtures("cached")
def test_the_images_are_in_the_order_of_the_batches():
    train, val = open_both("cifar10")
    assert [train.label(number) for number in range(15)] == [1, 2, 3, 2, 3, 4, 3, 4, 5, 4, 5, 6, 5, 6, 7]
    assert [val.label(number) for number in range(3)] == [9, 0, 1]
    assert (len(train), train.shards, train.classes[9]) == (15, [15], "truck")


@pytest.mark.usefixtures("cached")
def test_the_channels_are_red_green_blue_and_the_rows_come_first():
    image = Cifar10Images("train").read(4)  # of the second batch
    assert image.shape == (3, 32, 32)
    assert image[:, 7, 11].tolist() == [2, 7, 11]


@pytest.mark.usefixtures("cache")
def test_a_failed_download_says_where_to_put_the_archive():
    message = r"(?s)CIFAR-10 is not in .*cifar-10, and the download failed: .*\. Put cifar-10-binary\.tar\.gz there"
    with pytest.raises(DownloadError, match=message):
        Cifar10Images("val")


def test_the_archive_is_downloaded_into_the_cache_once(cache, tmp_path, monkeypatch):
    content = archive(tmp_path / "home" / cifar10.ARCHIVE)
    monkeypatch.setattr(cifar10, "SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(cifar10, "HOME", f"file://{tmp_path}/home/")
    assert len(Cifar10Images("val")) == 3
    (tmp_path / "home" / cifar10.ARCHIVE).unlink()
    assert len(Cifar10Images("val")) == 3
    assert [path.name for path in cache.iterdir()] == [cifar10.ARCHIVE]


def test_a_downloaded_archive_of_another_checksum_is_not_kept(cache, tmp_path, monkeypatch):
    archive(tmp_path / "home" / cifar10.ARCHIVE)
    monkeypatch.setattr(cifar10, "HOME", f"file://{tmp_path}/home/")
    with pytest.raises(DownloadError, match=r"the download failed: .*its checksum differs"):
        Cifar10Images("val")
    assert list(cache.iterdir()) == []


def test_an_archive_of_another_checksum_in_the_cache_is_refused(cache):
    archive(cache / cifar10.ARCHIVE)
    with pytest.raises(bn.BatchNormError, match=r"is not CIFAR-10's cifar-10-binary\.tar\.gz: its checksum differs"):
        Cifar10Images("val")


def test_all_named_images_have_a_preset():
    assert list(NAMED) == list(PRESETS)
