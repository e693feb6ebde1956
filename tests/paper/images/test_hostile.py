"""Files that are no files, and files that announce more than they hold: an error at once, and no memory eaten."""

import gzip
import io
import os
import struct
import tarfile
import time
import warnings

import numpy as np
import pytest
from PIL import Image
from support.jpegs import add, jpeg, jpeg_tree

import batchnorm as bn
from batchnorm.paper.images import decode as decode_module
from batchnorm.paper.images import idx
from batchnorm.paper.images.damage import DamagedImage
from batchnorm.paper.images.decode import decode
from batchnorm.paper.images.fashion import FashionImages
from batchnorm.paper.images.folders import FolderImages
from batchnorm.paper.images.idx import read_idx
from batchnorm.paper.images.shards import ShardImages, read_headers
from batchnorm.paper.images.sources import open_images

WHOLE = jpeg(3, np.random.default_rng(0))


@pytest.fixture(autouse=True)
def _in_seconds():
    started = time.monotonic()
    yield
    assert time.monotonic() - started < 20  # a hang ends in none


def fifo(path):
    os.mkfifo(path)


def zeros(path):
    path.symlink_to("/dev/zero")


SPECIAL = pytest.mark.parametrize(("make", "kind"), [(fifo, "a FIFO"), (zeros, "a device")])


# Images in folders


@SPECIAL
def test_an_image_that_is_no_file_is_a_damaged_one(tmp_path, make, kind):
    (tmp_path / "cat").mkdir()
    make(tmp_path / "cat" / "x.jpg")
    with pytest.raises(DamagedImage, match=rf"cat/x\.jpg: is {kind}; wanted a regular file$"):
        FolderImages(tmp_path).read(0)


def test_an_image_that_was_removed_is_a_damaged_one(tmp_path):
    images = FolderImages(jpeg_tree(tmp_path, train=1, val=1) / "train")
    for path in tmp_path.rglob("*.jpg"):
        path.unlink()
    with pytest.raises(DamagedImage, match=r"\.jpg: cannot be read: No such file or directory$"):
        images.read(0)


def test_links_in_a_circle_end(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "x.jpg").write_bytes(WHOLE)
    for name in "ab":
        (tmp_path / "cat" / name).symlink_to(tmp_path / "cat")
        (tmp_path / "cat" / f"up{name}").symlink_to(tmp_path)
    assert len(FolderImages(tmp_path)) == 1


def test_an_image_with_too_many_bytes_is_a_damaged_one(tmp_path):
    (tmp_path / "cat").mkdir()
    with (tmp_path / "cat" / "x.jpg").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(DamagedImage, match=r"x\.jpg: has 1,099,511,627,776 bytes; wanted at most 268,435,456$"):
        FolderImages(tmp_path).read(0)


# Pixels


def png(width, height):
    """Return a PNG of 1 bit a pixel, all black: few bytes for any size."""
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((8001, 8000), r"64,008,000 pixels; wanted at most 64,000,000$"),
        ((12_000, 12_000), r"144,000,000 pixels; wanted at most 64,000,000$"),  # Pillow warns
        ((20_000, 20_000), r"decompression bomb"),  # Pillow refuses
    ],
)
def test_an_image_of_too_many_pixels_is_damaged_and_pillows_warning_does_not_leak(size, message):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=message):
            decode(png(*size))


def test_the_largest_image_is_read(monkeypatch):
    monkeypatch.setattr(decode_module, "MOST_PIXELS", 63)
    assert decode(png(9, 7)).shape == (3, 7, 9)
    monkeypatch.setattr(decode_module, "MOST_PIXELS", 62)
    with pytest.raises(ValueError, match="63 pixels; wanted at most 62"):
        decode(png(9, 7))


def test_no_program_is_started_for_an_image():
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 7\n%%EndComments\nshowpage\n"
    with pytest.raises(ValueError, match="not an image, or of an unknown format"):
        decode(postscript)


# IDX


def header(*shape):
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


def bomb(path, start, count):
    """Write a gzip file of `start` and so many zeros: a thousandth of their bytes."""
    with gzip.GzipFile(path, "wb", compresslevel=1) as file:
        file.write(start)
        for _ in range(count // 2**22):
            file.write(bytes(2**22))


def test_a_gzip_bomb_is_read_up_to_what_its_header_announces(tmp_path, monkeypatch):
    bomb(tmp_path / "x.gz", header(20), 2**28)
    read, original = [], gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda self, size=-1: read.append(size) or original(self, size))
    with pytest.raises(bn.BatchNormError, match=r"announces \(20,\), 20 values, and holds more: damaged"):
        read_idx(tmp_path / "x.gz")
    assert read == [4, 4, 21]


@pytest.mark.parametrize("shape", [(2**32 - 1, 2**32 - 1), (2**16, 2**15), (255,) * 255])
def test_a_header_that_announces_too_much_is_refused(tmp_path, shape):
    (tmp_path / "x").write_bytes(header(*shape))
    with pytest.raises(bn.BatchNormError, match=r"x announces \(.*values; wanted at most 1,073,741,824$"):
        read_idx(tmp_path / "x")


def test_a_sparse_file_of_terabytes_is_read_up_to_what_its_header_announces(tmp_path):
    with (tmp_path / "x").open("wb") as file:
        file.write(header(3))
        file.truncate(2**42)
    with pytest.raises(bn.BatchNormError, match="holds more: damaged"):
        read_idx(tmp_path / "x")


@SPECIAL
def test_an_idx_file_that_is_no_file_is_one_line(tmp_path, make, kind):
    make(tmp_path / "x")
    with pytest.raises(bn.BatchNormError, match=rf"x is {kind}; wanted a regular file$"):
        read_idx(tmp_path / "x")


def test_an_idx_file_of_no_values_is_read(tmp_path):
    (tmp_path / "x").write_bytes(header(0, 28))
    assert read_idx(tmp_path / "x").shape == (0, 28)


def test_a_bomb_in_place_of_fashion_mnist_fails_its_checksum(tmp_path, monkeypatch):
    bomb(tmp_path / "t10k-images-idx3-ubyte.gz", b"", 2**28)
    monkeypatch.setattr("batchnorm.paper.images.fashion.DEBIAN", tmp_path)
    with pytest.raises(bn.BatchNormError, match="its checksum differs"):
        FashionImages("val")


def test_the_reader_of_idx_files_holds_the_largest_known():
    assert idx.MOST_VALUES >= 697_932 * 28 * 28  # EMNIST by class


# Shards


@SPECIAL
def test_a_shard_that_is_no_file_is_one_line(tmp_path, make, kind):
    make(tmp_path / "val-0.tar")
    with pytest.raises(bn.BatchNormError, match=rf"val-0\.tar is {kind}; wanted a regular file$"):
        open_images(str(tmp_path), "val")


def test_a_shard_that_became_a_fifo_has_damaged_images(tmp_path):
    shard = tmp_path / "val-0.tar"
    with tarfile.open(shard, "w") as tar:
        add(tar, "0.jpg", WHOLE)
        add(tar, "0.cls", b"0")
    images = ShardImages([shard], None, False)
    shard.unlink()
    os.mkfifo(shard)
    with pytest.raises(DamagedImage, match=r"val-0\.tar, 0: .*is a FIFO"):
        images.read(0)


def member(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("name", ["0.cls", "0.jpg"])
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (tarfile.SYMTYPE, "a link"),
        (tarfile.LNKTYPE, "a link"),
        (tarfile.CHRTYPE, "no regular file"),
        (tarfile.FIFOTYPE, "no regular file"),
        (tarfile.DIRTYPE, "no regular file"),
    ],
)
def test_a_member_that_is_no_file_is_one_line(tmp_path, name, kind, words):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.addfile(member(name, kind, "/etc/passwd"))
        add(tar, "0.jpg" if name == "0.cls" else "0.cls", b"0")
    with pytest.raises(bn.BatchNormError, match=rf"x\.tar has {name}, which is {words}; store the file itself$"):
        read_headers(tmp_path / "x.tar")


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (b"9" * 30, r"x\.tar has the label 0\.cls of 1,000,000 or more; wanted less$"),
        (b"1000000", r"x\.tar has the label 0\.cls of 1,000,000 or more; wanted less$"),
        (b"-" + b"9" * 30, r"x\.tar has a label below 0; wanted labels from 0$"),
        (b"0" * 65, r"x\.tar is damaged: the label 0\.cls has 65 bytes; wanted a number\. "),
        (b"", r"x\.tar is damaged: invalid literal"),
        (b"\xff", r"x\.tar is damaged: invalid literal"),
    ],
)
def test_a_label_that_is_no_class_is_one_line(tmp_path, label, message):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "0.jpg", WHOLE)
        add(tar, "0.cls", label)
    with pytest.raises(bn.BatchNormError, match=message):
        read_headers(tmp_path / "x.tar")


def test_a_header_that_announces_a_name_of_a_terabyte_is_not_read(tmp_path):
    info = member("././@LongLink", tarfile.GNUTYPE_LONGNAME)
    info.size = 2**33
    with (tmp_path / "x.tar").open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(2**40)
    with pytest.raises(bn.BatchNormError, match=r"x\.tar is damaged: a header announces 8,589,934,592 bytes; wanted"):
        read_headers(tmp_path / "x.tar")


def test_a_negative_size_does_not_lead_back(tmp_path):
    """CVE-2025-8194: Python's tarfile reads the same members without end."""
    info = member("0.jpg", tarfile.REGTYPE)
    info.size = -1024
    with (tmp_path / "x.tar").open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT) * 2 + bytes(1024))
    with pytest.raises(bn.BatchNormError, match=r"x\.tar is damaged: "):
        read_headers(tmp_path / "x.tar")


def test_an_image_larger_than_any_is_a_damaged_one(tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "val-0.tar", "w") as tar:
        add(tar, "0.jpg", WHOLE)
        add(tar, "0.cls", b"0")
    monkeypatch.setattr("batchnorm.paper.images.shards.MOST_BYTES", len(WHOLE) - 1)
    with pytest.raises(DamagedImage, match=r"val-0\.tar, 0: [\d,]+ bytes; wanted at most"):
        open_images(str(tmp_path), "val").read(0)


@SPECIAL
def test_an_index_that_is_no_file_is_not_used(tmp_path, make, kind):  # noqa: ARG001
    with tarfile.open(tmp_path / "val-0.tar", "w") as tar:
        add(tar, "0.jpg", WHOLE)
        add(tar, "0.cls", b"0")
    (tmp_path / "kept").mkdir()
    make(tmp_path / "kept" / "shards-val.npz")
    assert len(open_images(str(tmp_path), "val", tmp_path / "kept")) == 1


def test_a_folder_that_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "cat").mkdir()
    monkeypatch.setattr(os, "scandir", refuse)  # root may read every folder
    with pytest.raises(bn.BatchNormError, match=r"cat cannot be read: Permission denied$"):
        FolderImages(tmp_path)


def test_an_idx_file_of_more_axes_than_numpy_has_is_refused(tmp_path):
    file = tmp_path / "axes"
    file.write_bytes(b"\0\0\x08" + bytes([65]) + struct.pack(">65I", *[1] * 65) + b"\0")
    with pytest.raises(bn.BatchNormError, match="announces"):
        read_idx(file)
