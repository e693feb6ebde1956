"""Fashion-MNIST: found, downloaded, verified."""

import gzip
import hashlib
from pathlib import Path

import pytest

import batchnorm as bn
from batchnorm.errors import DownloadError
from batchnorm.paper.images import fashion
from batchnorm.paper.images.fashion import FashionImages


def test_fashion_mnist_is_verified_and_in_its_own_order():
    if not fashion.DEBIAN.is_dir():
        pytest.skip("Debian's dataset-fashion-mnist is not installed")
    val = FashionImages("val")
    assert (len(val), val.read(0).shape, val.classes[val.label(0)]) == (10_000, (1, 28, 28), "Ankle boot")
    assert val.shards == [1000] * 10


def test_fashion_mnist_of_another_checksum_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion, "DEBIAN", tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"other"))
    with pytest.raises(bn.BatchNormError, match="is not Fashion-MNIST's t10k-images-idx3-ubyte: its checksum differs"):
        FashionImages("val")


def test_a_failed_download_says_where_to_put_the_files(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion, "DEBIAN", tmp_path / "none")
    monkeypatch.setattr(fashion, "HOME", "http://localhost:1/")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(DownloadError, match=r"(?s)neither in .*none nor in .*cache.*the download failed.*Install"):
        FashionImages("val")


def test_fashion_mnist_is_downloaded_into_the_cache(tmp_path, monkeypatch):
    content = b"\0\0\x08\x01\0\0\0\x02\x01\x02"
    home = tmp_path / "home"
    home.mkdir()
    for name in fashion.FILES["val"]:
        (home / f"{name}.gz").write_bytes(gzip.compress(content))
        monkeypatch.setitem(fashion.SHA256, name, hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(fashion, "DEBIAN", tmp_path / "none")
    monkeypatch.setattr(fashion, "HOME", f"file://{home}/")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert fashion.find_file("t10k-labels-idx1-ubyte") == tmp_path / "cache/batchnorm/fashion-mnist" / (
        "t10k-labels-idx1-ubyte.gz"
    )
    assert not list(tmp_path.rglob("*.partial"))


def test_a_downloaded_file_of_another_checksum_is_not_kept(tmp_path, monkeypatch):
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"other"))
    monkeypatch.setattr(fashion, "DEBIAN", tmp_path / "none")
    monkeypatch.setattr(fashion, "HOME", f"file://{tmp_path}/")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(DownloadError, match=r"the download failed: .*its checksum differs.*Install"):
        fashion.find_file("t10k-labels-idx1-ubyte")
    assert not list((tmp_path / "cache").rglob("*.*"))


def test_nothing_is_downloaded_at_import():
    sources = [path.read_text() for path in Path(fashion.__file__).parent.glob("*.py")]
    assert sum(source.count("urlretrieve(") for source in sources) == 1  # Inside the function that --data calls.
