"""Results in files: refused before the work, or one line when the writing fails."""

import importlib.util
import sys

import pytest
import torch

from batchnorm.cli.output import check_out, write
from batchnorm.errors import BatchNormError, StorageError


@pytest.fixture
def fold(fails):
    """Fold a network that does not exist: a file must be refused before anything is made."""
    return lambda out: fails("fold", "tiny:not_there_either", "--input", "2x3x8x8", "--out", out)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("out.pt", "out.pt ends in '.pt'; wanted a new file that ends in .pt2 or .onnx or .safetensors"),
        (".", ". is a folder; wanted a new file that ends in .pt2 or .onnx or .safetensors"),
        ("old.onnx", "old.onnx exists already; give another name, or remove it"),
        ("no/out.pt2", "there is no folder no"),
    ],
)
def test_a_file_that_cannot_be_new_is_refused_before_the_work(fold, tmp_path, out, message):
    (tmp_path / "old.onnx").touch()
    assert fold(out) == message


@pytest.mark.parametrize("command", ["recalibrate", "insert"])
@pytest.mark.usefixtures("tiny")
def test_a_network_that_trains_is_written_as_tensors_alone(fails, command):
    needed = ("--input", "2x3x8x8") if command == "insert" else ("--data", "tiny:batches")
    found = fails(command, "tiny:not_there_either", *needed, "--out", "out.onnx")
    assert found == "out.onnx ends in '.onnx'; wanted a new file that ends in .safetensors"


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("suffix", "package"), [("onnx", "onnxscript"), ("onnx", "onnx"), ("safetensors", "safetensors")]
)
def test_without_its_packages_a_format_is_refused_before_the_work(fold, monkeypatch, suffix, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    assert fold(f"out.{suffix}") == f".{suffix} files need {package}: pip install 'batchnorm[files]'"


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("suffix", [".pt2", ".onnx", ".safetensors"])
@pytest.mark.parametrize(("folder", "why"), [("/proc", "No such file or directory"), ("", "File name too long")])
def test_a_file_that_the_system_refuses_is_found_before_the_work(fold, suffix, folder, why):
    file = f"{folder}/out{suffix}" if folder else f"{'x' * 300}{suffix}"
    assert fold(file) == f"{file} cannot be written: {why}"


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("out", ["x" * 300, "x" * 300 + "/out.pt2"])
def test_a_name_of_300_letters_is_one_line(fold, out):
    assert "x" * 300 in fold(out)


@pytest.mark.usefixtures("tiny")
def test_a_link_to_nowhere_exists(fold, tmp_path):
    (tmp_path / "out.pt2").symlink_to("nowhere")
    assert fold("out.pt2") == "out.pt2 exists already; give another name, or remove it"


def test_the_check_leaves_no_file(tmp_path):
    check_out(tmp_path / "out.safetensors", (".safetensors",))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("enforce fail at inline_con")])
def test_a_disk_that_fills_up_is_a_storage_error_and_leaves_no_part(tmp_path, error):
    def save(file):
        file.write_bytes(b"part")
        raise error

    with pytest.raises(StorageError, match=rf"out\.pt2 cannot be written: {type(error).__name__}: "):
        write(tmp_path / "out.pt2", save)
    assert not list(tmp_path.iterdir())


def test_no_file_is_no_error():
    check_out(None, ())


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(("suffix", "export"), [(".pt2", "torch.export.export"), (".onnx", "torch.onnx.export")])
def test_a_network_that_torch_cannot_export_is_one_line(fails, monkeypatch, suffix, export):
    def fail(*_args, **_options):
        raise RuntimeError("no such operator\nand forty lines of advice")

    monkeypatch.setattr(export, fail)
    found = fails("fold", "tiny:with_norm", "--input", "2x3x8x8", "--out", f"out{suffix}")
    assert found == f"torch cannot export Sequential as {suffix}: RuntimeError: no such operator"


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is a folder that nobody can write to")
@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("suffix", [".pt2", ".onnx", ".safetensors"])
def test_a_folder_that_cannot_be_written_to_is_a_storage_error(run, fails, suffix):
    arguments = ("fold", "tiny:with_norm", "--input", "2x3x8x8", "--out", f"/proc/out{suffix}")
    assert fails(*arguments).startswith(f"/proc/out{suffix} cannot be written: ")
    with pytest.raises(SystemExit) as exited:
        run(*arguments)
    assert isinstance(exited.value.__context__, StorageError)


@pytest.mark.usefixtures("tiny")
def test_an_error_of_the_caller_stays_one(run, monkeypatch):
    def fail(*_args, **_options):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(torch.export, "export", fail)
    with pytest.raises(SystemExit) as exited:
        run("fold", "tiny:with_norm", "--input", "2x3x8x8", "--out", "out.pt2")
    assert isinstance(exited.value.__context__, BatchNormError)
