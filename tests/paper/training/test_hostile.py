"""Records, settings and checkpoints that are no files: an error at once."""

import os
import zipfile

import pytest
import torch

import batchnorm as bn
from batchnorm.paper.training.checkpoint import Checkpoint
from batchnorm.paper.training.rows import read_rows
from batchnorm.paper.training.run import Run


def fifo(path):
    os.mkfifo(path)


def zeros(path):
    path.symlink_to("/dev/zero")


def folder(path):
    path.mkdir()


def sparse(path):
    with path.open("wb") as file:
        file.truncate(2**42)


NO_FILES = [
    (fifo, "is a FIFO; wanted a regular file"),
    (zeros, "is a device; wanted a regular file"),
    (folder, "is a folder; wanted a regular file"),
]
LARGE = (sparse, "has 4,398,046,511,104 bytes; wanted at most")


@pytest.mark.parametrize(("make", "what"), [*NO_FILES, LARGE])
def test_records_that_are_no_file_are_one_line(tmp_path, make, what):
    make(tmp_path / "metrics.jsonl")
    with pytest.raises(bn.BatchNormError, match=rf"^{tmp_path}/metrics\.jsonl {what}"):
        read_rows(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize(("make", "what"), [*NO_FILES, LARGE])
def test_settings_that_are_no_file_are_one_line(tmp_path, make, what):
    make(tmp_path / "config.json")
    with pytest.raises(bn.BatchNormError, match=rf"is not the folder of a run: .*config\.json {what}"):
        Run.open(tmp_path)


@pytest.mark.parametrize(("make", "what"), NO_FILES)
def test_a_checkpoint_that_is_no_file_gives_way_to_the_one_before(tmp_path, make, what):
    checkpoint = Checkpoint(tmp_path / "checkpoint-bn.pt")
    make(checkpoint.path)
    with pytest.raises(bn.BatchNormError, match=rf"checkpoint-bn\.pt {what}: remove it to train from the start"):
        checkpoint.load()
    torch.save({"step": 1}, checkpoint.previous)
    with pytest.warns(UserWarning, match=rf"checkpoint-bn\.pt {what}\. Going on from .*previous\.pt, step 1"):
        assert checkpoint.load() == {"step": 1}


def test_a_checkpoint_that_unpacks_to_more_is_refused(tmp_path):
    checkpoint = Checkpoint(tmp_path / "checkpoint-bn.pt")
    torch.save({"step": torch.zeros(10**6)}, tmp_path / "whole.pt")
    packed = zipfile.ZipFile(checkpoint.path, "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "whole.pt") as whole, packed:
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    with pytest.raises(bn.BatchNormError, match=r"checkpoint-bn\.pt is compressed: its [\d,]+ bytes unpack to 4,"):
        checkpoint.load()
