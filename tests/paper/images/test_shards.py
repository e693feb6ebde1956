"""WebDataset shards, and the index of their headers."""

import tarfile

import numpy as np
import pytest
from support.jpegs import add, jpeg, jpeg_shards

import batchnorm as bn
from batchnorm.errors import StorageError
from batchnorm.paper.images import shards as shard_module
from batchnorm.paper.images.damage import DamagedImage
from batchnorm.paper.images.sources import has_index, open_both, open_images, save_index


@pytest.fixture
def headers_read(monkeypatch):
    """Collect the names of the shards whose headers are read."""
    read, original = [], shard_module.read_headers
    monkeypatch.setattr(shard_module, "read_headers", lambda path: read.append(path.name) or original(path))
    return read


@pytest.fixture
def indexed(tmp_path):
    """Return a folder of shards, and one that holds their index."""
    data, kept = jpeg_shards(tmp_path / "data", train=3, val=2), tmp_path / "kept"
    kept.mkdir()
    save_index(open_both(str(data)), kept)
    return data, kept


def test_the_first_index_is_noticed(shards, tmp_path):
    assert not has_index(tmp_path)
    save_index(open_both(str(shards)), tmp_path)
    assert has_index(tmp_path)


def test_a_damaged_image_in_a_shard_is_named(tmp_path):
    with tarfile.open(tmp_path / "val-0.tar", "w") as tar:
        add(tar, "a/b.c/key.jpg", b"not an image")
        add(tar, "a/b.c/key.cls", b"2")
    images = open_images(str(tmp_path), "val")
    assert (images.label(0), len(images.classes)) == (2, 3)
    with pytest.raises(DamagedImage, match=r"val-0\.tar, a/b\.c/key: "):
        images.read(0)


def test_shards_with_an_index_are_not_read_again_and_hold_the_same(indexed, headers_read):
    data, kept = indexed
    from_index = open_both(str(data), kept)
    assert headers_read == []
    for ours, split in zip(from_index, ("train", "val"), strict=True):
        fresh = open_images(str(data), split)
        assert (ours.classes, ours.shards) == (fresh.classes, fresh.shards)
        for number in range(len(fresh)):
            assert ours.name(number) == fresh.name(number)
            assert ours.label(number) == fresh.label(number)
            assert ours.read(number).equal(fresh.read(number))


def relabeled(path):
    """Lower every label of the shard by one. The number of bytes stays."""
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        places = [member.offset_data for member in tar if member.name.endswith(".cls")]
    for place in places:
        label = int(content[place : place + 1])
        content[place : place + 1] = str(max(0, label - 1)).encode()
    path.write_bytes(content)


def one_image_more(path):
    with tarfile.open(path, "a") as tar:
        add(tar, "more.jpg", jpeg(3, np.random.default_rng(0)))
        add(tar, "more.cls", b"3")


@pytest.mark.parametrize("change", [relabeled, one_image_more])
def test_a_shard_that_has_changed_is_read_again_alone(indexed, headers_read, change):
    data, kept = indexed
    change(data / "train-000001.tar")
    ours = open_images(str(data), "train", kept)
    assert headers_read == ["train-000001.tar"]
    fresh = open_images(str(data), "train")
    assert [ours.label(n) for n in range(len(ours))] == [fresh.label(n) for n in range(len(fresh))]
    assert ours.shards == fresh.shards


def test_an_index_of_other_shards_is_not_used(indexed, headers_read, tmp_path):
    data, kept = indexed
    data.rename(tmp_path / "elsewhere")  # of the same names, bytes and times
    open_images(str(tmp_path / "elsewhere"), "val", kept)
    assert headers_read == [f"val-00000{n}.tar" for n in range(3)]


@pytest.mark.parametrize("kept_bytes", [0, 100, 2000])
def test_a_damaged_index_is_not_used(indexed, headers_read, kept_bytes):
    data, kept = indexed
    path = kept / "shards-val.npz"
    path.write_bytes(path.read_bytes()[:kept_bytes])
    assert len(open_images(str(data), "val", kept)) == 20
    assert len(headers_read) == 3


@pytest.mark.parametrize(
    "change", [{"keys": slice(0, -1)}, {"places": -1}], ids=["fewer keys than places", "before the file"]
)
def test_an_index_that_contradicts_itself_is_not_used(indexed, headers_read, change):
    data, kept = indexed
    path = kept / "shards-val.npz"
    arrays = dict(np.load(path))
    (name, how), *_ = change.items()
    arrays[name] = arrays[name][how] if isinstance(how, slice) else np.full_like(arrays[name], how)
    np.savez(path, **arrays)
    images = open_images(str(data), "val", kept)
    assert len(headers_read) >= 1
    assert [images.read(number).ndim for number in range(len(images))] == [3] * 20


def test_an_index_that_cannot_be_written_is_an_error(indexed, tmp_path):
    data, _ = indexed
    with pytest.raises(StorageError, match=r"cannot write .*gone/shards-train\.npz: .*No such file"):
        save_index(open_both(str(data)), tmp_path / "gone")


def shard(folder, *members):
    with tarfile.open(folder / "train-0.tar", "w") as tar:
        for name, content in members:
            add(tar, name, content)


def no_images(folder):
    shard(folder, ("0.cls", b"1"))


def no_label(folder):
    shard(folder, ("0.jpg", b"x"), ("0.cls", b"1"), ("1.jpg", b"x"))


def no_number(folder):
    shard(folder, ("0.jpg", b"x"), ("0.cls", b"cat"))


def below_zero(folder):
    shard(folder, ("0.jpg", b"x"), ("0.cls", b"-1"))


def cut(folder):
    shard(folder, ("0.jpg", b"x" * 5000), ("0.cls", b"1"))
    path = folder / "train-0.tar"
    path.write_bytes(path.read_bytes()[:3000])


def labels_from_one(folder):
    shard(folder, ("0.jpg", b"x"), ("0.cls", b"1"), ("1.jpg", b"x"), ("1.cls", b"2"))


# Four members, each a header and a block of content: cuts fall into headers, between members, into contents.
@pytest.mark.parametrize("kept", range(256, 512 * 8 + 1, 256))
def test_a_shard_cut_anywhere_is_an_error(tmp_path, kept):
    shard(tmp_path, *(member for n in range(2) for member in ((f"{n}.jpg", b"x"), (f"{n}.cls", str(n).encode()))))
    path = tmp_path / "train-0.tar"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(bn.BatchNormError, match=r"train-0\.tar is damaged: "):
        open_images(str(tmp_path), "train")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (no_images, r"train-0\.tar has no images; wanted KEY\.jpg and KEY\.cls"),
        (no_label, r"train-0\.tar has no label 1\.cls for its image 1"),
        (no_number, r"train-0\.tar is damaged: invalid literal"),
        (below_zero, r"train-0\.tar has a label below 0"),
        (cut, r"train-0\.tar is damaged"),
        (labels_from_one, r"the shards have labels up to 2 and no image of class 0; wanted labels from 0"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_shards_that_hold_no_training_set_are_an_error(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(bn.BatchNormError, match=message):
        open_images(str(tmp_path), "train")
