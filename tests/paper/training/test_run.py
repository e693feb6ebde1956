"""A run folder: created once, claimed by one process, and never overwritten."""

import json
from pathlib import Path

import pytest
import torch

import batchnorm as bn
from batchnorm.errors import StorageError
from batchnorm.paper.training.run import Run, new_folder


def test_a_run_reads_back_what_it_was_created_with(tmp_path):
    created = Run.create(tmp_path / "run", "mnist", {"lr": 0.1, "data": None})
    run, experiment, config = Run.open(created.folder)
    assert (run.folder, experiment, config) == (created.folder, "mnist", {"lr": 0.1, "data": None})


def test_a_run_never_overwrites_another(tmp_path):
    run = Run.create(tmp_path / "run", "mnist", {})
    run.append({"step": 0})
    with pytest.raises(bn.BatchNormError, match=r"exists, and nothing is overwritten.*--resume"):
        Run.create(run.folder, "mnist", {})
    assert run.rows() == [{"step": 0}]


def test_only_a_run_is_resumed(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(bn.BatchNormError, match=r"exists, and nothing is overwritten\. Name a new folder$"):
        new_folder(tmp_path, "report")


def test_a_run_that_was_killed_while_it_was_created_is_created_again(tmp_path):
    (tmp_path / "config.json.partial").write_text("{")
    assert Run.create(tmp_path, "mnist", {"lr": 0.1}).rows() == []
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_default_folders_are_numbered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [str(Run.create(None, "mnist", {}).folder) for _ in range(3)]
    assert folders == ["runs/mnist-1", "runs/mnist-2", "runs/mnist-3"]


def test_a_runs_folder_that_cannot_be_created_is_an_error_of_storage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs").symlink_to("nowhere")
    with pytest.raises(StorageError, match="cannot create the run folder in runs"):
        Run.create(None, "mnist", {})


def test_a_run_is_claimed_once(tmp_path):
    pytest.importorskip("fcntl")
    run = Run.create(tmp_path / "run", "mnist", {})
    with run.claimed(), pytest.raises(bn.BatchNormError, match="is being written by another process"), run.claimed():
        pass
    with run.claimed():
        pass


def made_with(folder: Path, **options: str) -> dict[str, object]:
    run = Run.create(folder, "mnist", {}, **options)
    return json.loads((run.folder / "config.json").read_text())["made_with"]


def test_a_run_names_the_gpu_that_it_begins_on(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H100")
    assert made_with(tmp_path / "run", device="cuda")["gpu"] == "H100"


def test_a_run_on_the_cpu_does_not_look_for_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: pytest.fail("asked for a GPU"))
    assert "gpu" not in made_with(tmp_path / "run")
