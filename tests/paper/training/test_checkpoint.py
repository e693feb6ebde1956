"""Checkpoints: the state before the newest survives a full disk, and no file runs code."""

import os
from pathlib import Path

import pytest
import torch

import batchnorm as bn
from batchnorm.errors import StorageError
from batchnorm.paper.training.checkpoint import Checkpoint


@pytest.fixture
def checkpoint(tmp_path):
    return Checkpoint(tmp_path / "checkpoint-bn.pt")


def test_the_newest_state_is_loaded(checkpoint):
    assert checkpoint.load() is None
    checkpoint.save({"step": 1})
    checkpoint.save({"step": 2})
    assert checkpoint.load() == {"step": 2}


def test_a_damaged_newest_state_gives_way_to_the_one_before(checkpoint):
    checkpoint.save({"step": 1})
    checkpoint.save({"step": 2})
    checkpoint.path.write_bytes(checkpoint.path.read_bytes()[:500])
    with pytest.warns(UserWarning, match=r"bn\.pt is damaged .* Going on from .*previous\.pt, step 1\."):
        assert checkpoint.load() == {"step": 1}
    checkpoint.previous.unlink()
    with pytest.raises(bn.BatchNormError, match=r"bn\.pt is damaged \(.*\): remove it to train from the start"):
        checkpoint.load()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full, a disk that is always full")
def test_a_full_disk_is_an_error_of_storage_and_keeps_the_state_before(checkpoint):
    checkpoint.save({"step": 1})
    checkpoint.path.with_suffix(".partial").symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"cannot write .*checkpoint-bn\.pt: .*The state before it is kept\."):
        checkpoint.save({"step": 2})
    assert checkpoint.load() == {"step": 1}


class Code:
    def __reduce__(self):
        return os.mkdir, ("run-by-pickle",)


def test_a_checkpoint_runs_no_code(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"step": 1, "model": Code()}, checkpoint.path)
    with pytest.raises(bn.BatchNormError, match="damaged"):
        checkpoint.load()
    assert not (tmp_path / "run-by-pickle").exists()
