"""Where images come from: class folders, shards, Fashion-MNIST; and what is wrong with them."""

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.jpegs import CLASSES, add, jpeg, jpeg_shards, jpeg_tree, samples

import batchnorm as bn
from batchnorm.paper.images import shards as shard_room
from batchnorm.paper.images import sources as room
from batchnorm.paper.images.decode import DamagedImage, decode
from batchnorm.paper.images.sources import check_classes, has_index, open_both, open_images, save_index


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return jpeg_tree(tmp_path_factory.mktemp("tree"), train=3, val=2)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return jpeg_shards(tmp_path_factory.mktemp("shards"), train=3, val=2)


def contents(images):
    """Label -> the images of it, as bytes, in any order."""
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
    assert folders.classes == CLASSES
    assert tar.classes == tuple(map(str, range(10)))
    assert (len(folders), folders.shards, list(tar.shards)) == (30, [30], [10, 10, 10])


def test_class_folders_stand_in_a_fixed_mixed_order(tree):
    first, second = open_images(str(tree), "train"), open_images(str(tree), "train")
    names = [first.name(number) for number in range(30)]
    assert names == [second.name(number) for number in range(30)]
    assert names != sorted(names)


def test_fashion_mnist_is_verified_and_in_its_own_order():
    if not room.DEBIAN.is_dir():
        pytest.skip("Debian's dataset-fashion-mnist is not installed")
    val = open_images("fashion", "val")
    assert (len(val), val.read(0).shape, val.classes[val.label(0)]) == (10_000, (1, 28, 28), "Ankle boot")
    assert val.shards == [1000] * 10


def test_fashion_mnist_of_another_checksum_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "DEBIAN", tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"other"))
    with pytest.raises(bn.BatchNormError, match="is not Fashion-MNIST's t10k-images-idx3-ubyte: its checksum differs"):
        open_images("fashion", "val")


def test_fashion_mnist_nowhere_says_where_to_put_it(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "DEBIAN", tmp_path / "none")
    monkeypatch.setattr(room, "FASHION_HOME", "http://localhost:1/")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(bn.BatchNormError, match=r"(?s)neither in .*none nor in .*cache.*cannot be fetched.*Install"):
        open_images("fashion", "val")


def test_fashion_mnist_is_fetched_into_the_cache(tmp_path, monkeypatch):
    content = b"\0\0\x08\x01\0\0\0\x02\x01\x02"
    home = tmp_path / "home"
    home.mkdir()
    for name in room.FASHION_FILES["val"]:
        (home / f"{name}.gz").write_bytes(gzip.compress(content))
        monkeypatch.setitem(room.FASHION_SUMS, name, __import__("hashlib").sha256(content).hexdigest())
    monkeypatch.setattr(room, "DEBIAN", tmp_path / "none")
    monkeypatch.setattr(room, "FASHION_HOME", f"file://{home}/")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert room._fashion_file("t10k-labels-idx1-ubyte") == tmp_path / "cache/batchnorm/fashion-mnist" / (
        "t10k-labels-idx1-ubyte.gz"
    )
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "1"])
def test_any_mode_becomes_rgb(mode):
    file = io.BytesIO()
    picture = Image.new("RGB", (9, 7), (255, 255, 255)).convert(mode)
    picture.save(file, "JPEG" if mode in ("L", "CMYK") else "PNG")
    image = decode(file.getvalue())
    assert (image.shape, image.dtype) == ((3, 7, 9), torch.uint8)
    assert image.float().mean() > 250


def damaged_contents():
    whole = jpeg(3, np.random.default_rng(0))
    return {"truncated": whole[: len(whole) // 2], "text": b"not an image", "empty": b""}


@pytest.mark.parametrize("kind", ["truncated", "text", "empty"])
def test_what_cannot_be_decoded_is_named(tmp_path, kind):
    folder = jpeg_tree(tmp_path / "tree", train=1, val=1)
    path = folder / "train" / "class0" / "bad.jpg"
    path.write_bytes(damaged_contents()[kind])
    images = open_images(str(folder), "train")
    (number,) = (n for n in range(len(images)) if images.name(n).endswith("bad.jpg"))
    with pytest.raises(DamagedImage, match=r"class0/bad\.jpg: "):
        images.read(number)


def test_a_damaged_image_in_a_shard_is_named(tmp_path):
    with tarfile.open(tmp_path / "val-0.tar", "w") as tar:
        add(tar, "a/b.c/key.jpg", b"not an image")
        add(tar, "a/b.c/key.cls", b"2")
    images = open_images(str(tmp_path), "val")
    assert (images.label(0), len(images.classes)) == (2, 3)
    with pytest.raises(DamagedImage, match=r"val-0\.tar, a/b\.c/key: "):
        images.read(0)


@pytest.fixture
def headers_read(monkeypatch):
    """The names of the shards whose headers are read."""
    read, index_shard = [], shard_room._index_shard
    monkeypatch.setattr(shard_room, "_index_shard", lambda path: read.append(path.name) or index_shard(path))
    return read


@pytest.fixture
def indexed(tmp_path):
    """A folder of shards, and one that holds their index."""
    data, kept = jpeg_shards(tmp_path / "data", train=3, val=2), tmp_path / "kept"
    kept.mkdir()
    assert not has_index(kept)
    save_index(open_both(str(data)), kept)
    assert has_index(kept)
    return data, kept


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


def relabelled(path):
    """The shard with every label one less: as many bytes."""
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        labels = [(m.offset_data, int(tar.extractfile(m).read())) for m in tar if m.name.endswith(".cls")]
    for place, label in labels:
        content[place : place + 1] = str(max(0, label - 1)).encode()
    path.write_bytes(content)


def one_image_more(path):
    with tarfile.open(path, "a") as tar:
        add(tar, "more.jpg", jpeg(3, np.random.default_rng(0)))
        add(tar, "more.cls", b"3")


@pytest.mark.parametrize("change", [relabelled, one_image_more])
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


def test_an_index_that_cannot_be_written_is_an_error(indexed, tmp_path):
    data, _ = indexed
    with pytest.raises(bn.BatchNormError, match=r"cannot write .*gone/shards-train\.npz: .*No such file"):
        save_index(open_both(str(data)), tmp_path / "gone")


def no_folder(folder):
    folder.rmdir()


def no_split(folder):
    (folder / "val").mkdir()


def no_classes(folder):
    (folder / "train").mkdir()


def an_empty_class(folder):
    jpeg_tree(folder, train=1, val=1)
    (folder / "train" / "empty").mkdir()


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
        (no_folder, r"--data .* is no folder; wanted one with train and val, or fashion"),
        (no_split, r"has neither train-\*\.tar nor a folder train"),
        (no_classes, r"train has no class folders; wanted train/CLASS/IMAGE\.jpg"),
        (an_empty_class, r"the class folder .*train/empty has no images"),
        (no_images, r"train-0\.tar has no images; wanted KEY\.jpg and KEY\.cls"),
        (no_label, r"train-0\.tar has no label 1\.cls for its image 1"),
        (no_number, r"train-0\.tar is damaged: invalid literal"),
        (below_zero, r"train-0\.tar has a label below 0"),
        (cut, r"train-0\.tar is damaged"),
        (labels_from_one, r"the shards have labels up to 2 and no image of class 0; wanted labels from 0"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_holds_no_training_set_is_an_error(tmp_path, make, message):
    folder = tmp_path / "data"
    folder.mkdir()
    make(folder)
    with pytest.raises(bn.BatchNormError, match=message):
        open_images(str(folder), "train")


class Labelled:
    def __init__(self, *classes):
        self.classes = classes


@pytest.mark.parametrize(
    ("val", "trained", "message"),
    [
        (("0", "1", "2"), ("0", "1"), "a label is 2, past the network's 2 classes"),
        (("cat", "cow"), ("cat", "dog"), "1 classes to validate were not trained, such as 'cow'"),
        (("dog",), ("cat", "dog"), "classes without validation images, such as 'cat'"),
        (("0", "2"), ("0", "1", "2"), "classes without validation images, such as '1'"),
    ],
)
def test_labels_that_do_not_agree_are_an_error(val, trained, message):
    with pytest.raises(bn.BatchNormError, match=message):
        check_classes(Labelled(*val), trained)


def test_fewer_numbered_labels_than_classes_are_fine():
    check_classes(Labelled("0", "1"), ("0", "1", "2"))
    check_classes(Labelled("cat", "dog"), ("cat", "dog"))


def test_the_modules_fetch_nothing_at_import():
    source = Path(room.__file__).read_text()
    assert source.count("urlretrieve") == 1  # inside the function that --data fashion calls


def test_images_in_linked_and_nested_folders_are_found(tmp_path):
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere" / "deep" / "A.JPG").write_bytes(jpeg(1, np.random.default_rng(0)))
    (tmp_path / "data" / "train" / "cat").mkdir(parents=True)
    (tmp_path / "data" / "train" / "cat" / "link").symlink_to(tmp_path / "elsewhere")
    images = open_images(str(tmp_path / "data"), "train")
    assert [images.name(n) for n in range(len(images))] == [str(tmp_path / "data/train/cat/link/deep/A.JPG")]


def test_an_image_too_large_to_be_one_is_damaged(tmp_path, monkeypatch):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "train" / "cat" / "a.jpg").write_bytes(jpeg(1, np.random.default_rng(0)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow's guard; its error is neither OSError nor ValueError
    with pytest.raises(DamagedImage, match=r"a\.jpg: .*decompression bomb"):
        open_images(str(tmp_path), "train").read(0)


def test_a_fetched_file_of_another_checksum_is_not_kept(tmp_path, monkeypatch):
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"other"))
    monkeypatch.setattr(room, "DEBIAN", tmp_path / "none")
    monkeypatch.setattr(room, "FASHION_HOME", f"file://{tmp_path}/")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(bn.BatchNormError, match="its checksum differs"):
        room._fashion_file("t10k-labels-idx1-ubyte")
    assert not list((tmp_path / "cache").rglob("*.*"))
