"""Only regular files are read, up to a stated size. Every test would hang or eat the memory otherwise."""

import os
import socket
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import batchnorm as bn
from batchnorm.files import check_regular, check_unpacked, is_regular, open_regular, read_regular


def fifo(path):
    os.mkfifo(path)


def folder(path):
    path.mkdir()


def device(path):
    path.symlink_to("/dev/zero")


def listener(path):
    # The name stays after the socket is closed. It must be short, so bind it from its folder.
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(path.name)
    finally:
        os.chdir(before)


def nothing(_path):
    pass


@pytest.mark.parametrize(
    "read", [check_regular, open_regular, lambda path: read_regular(path, 10), check_unpacked], ids=range(4)
)
@pytest.mark.parametrize(
    ("make", "what"),
    [
        (fifo, r"x\.pt is a FIFO; wanted a regular file$"),
        (folder, r"x\.pt is a folder; wanted a regular file$"),
        (device, r"x\.pt is a device; wanted a regular file$"),
        (listener, r"x\.pt (is a socket; wanted a regular file|cannot be read: No such device or address)$"),
        (nothing, r"x\.pt cannot be read: No such file or directory$"),
    ],
)
def test_what_is_no_regular_file_is_named(tmp_path, read, make, what):
    make(tmp_path / "x.pt")
    assert not is_regular(tmp_path / "x.pt")
    with pytest.raises(bn.BatchNormError, match=what):
        read(tmp_path / "x.pt")


def test_a_name_that_the_system_refuses_is_one_line(tmp_path):
    assert not is_regular(tmp_path / ("x" * 300))
    with pytest.raises(bn.BatchNormError, match="cannot be read: File name too long"):
        check_regular(tmp_path / ("x" * 300))


def test_a_link_to_a_regular_file_is_read(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert is_regular(tmp_path / "link")
    assert read_regular(tmp_path / "link", 7) == b"content"


def test_a_file_beyond_the_bound_is_not_read(tmp_path):
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(bn.BatchNormError, match=r"sparse has 1,099,511,627,776 bytes; wanted at most 6$"):
        read_regular(tmp_path / "sparse", 6)


def test_a_compressed_archive_is_refused_and_torchs_and_numpys_pass(tmp_path):
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data", bytes(10**6))
    with pytest.raises(bn.BatchNormError, match=r"bomb\.pt is compressed: its [\d,]+ bytes unpack to 1,000,000; write"):
        check_unpacked(bomb)
    torch.save({"x": torch.zeros(1000)}, tmp_path / "x.pt")
    np.savez(tmp_path / "x.npz", x=np.zeros(1000))
    (tmp_path / "text").write_text("PK no archive")
    for name in ("x.pt", "x.npz", "text"):
        check_unpacked(tmp_path / name)
