"""Weights from a file: loaded, or one line that says what is wrong. No file runs code."""

import os
import re
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.interpreter import batchnorm
from torch import nn


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_are_loaded(run, tiny, suffix):
    trained = tiny.with_norm()
    nn.init.normal_(trained[4].weight)
    save = torch.save if suffix == ".pt" else save_file
    save(trained.state_dict(), f"weights{suffix}")
    run("fold", "tiny:with_norm", "--weights", f"weights{suffix}", "--input", "2x3x8x8", "--out", "out.pt2")
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    # two float32 layers, in another order of operations
    got = torch.export.load("out.pt2").module()(images)
    torch.testing.assert_close(got, trained.eval()(images), rtol=1e-5, atol=1e-5)


def test_an_old_checkpoint_does_not_count_batches(run, tiny):
    state = tiny.with_norm().state_dict()
    del state["1.num_batches_tracked"]
    torch.save(state, "weights.pt")
    assert "1 folded, 0 affine, 0 kept" in run(
        "fold", "tiny:with_norm", "--weights", "weights.pt", "--input", "2x3x8x8"
    )


class Code:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def write_code(state):
    torch.save({"state_dict": state, "extra": Code()}, "weights.pt")


def write_model(_state):
    torch.save(nn.Linear(2, 2), "weights.pt")


def write_missing(state):
    torch.save({name: value for name, value in state.items() if name != "4.bias"}, "weights.pt")


def write_more(state):
    torch.save({**state, "5.weight": torch.zeros(1)}, "weights.pt")


def write_shape(state):
    torch.save({**state, "0.weight": torch.zeros(4, 3, 7, 7)}, "weights.pt")


def write_wrapped(state):
    torch.save({f"module.{name}": value for name, value in state.items()}, "weights.pt")


def write_nested(state):
    torch.save({"epoch": 3, "state_dict": state}, "weights.pt")


def write_list(_state):
    torch.save([1, 2], "weights.pt")


def write_junk(_state):
    Path("weights.pt").write_text("junk")


def write_script(_state):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit is deprecated, but its files are still in use
        torch.jit.script(nn.Linear(2, 2)).save("weights.pt")


def write_nothing(_state):
    pass


def write_fifo(_state):
    os.mkfifo("weights.pt")


def write_zeros(_state):
    Path("weights.pt").symlink_to("/dev/zero")


def write_folder(_state):
    Path("weights.pt").mkdir()


def write_numbers(state):
    torch.save(dict(enumerate(state.values())), "weights.pt")


def write_instead(tensor):
    """Write another tensor in place of one."""

    def write(state):
        torch.save({**state, "4.bias": tensor()}, "weights.pt")

    return write


def quantized():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # deprecated, but its files are still in use
        return torch.quantize_per_tensor(torch.zeros(2), scale=1.0, zero_point=0, dtype=torch.qint8)


def write_packed(state):
    torch.save({**state, "4.bias": torch.zeros(10**6)}, "whole.pt")
    packed = zipfile.ZipFile("weights.pt", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile("whole.pt") as whole, packed:
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_code, r"weights\.pt is refused: it is damaged or holds more than tensors, and loading that could"),
        (write_model, r"weights\.pt is refused"),
        (write_missing, r"weights\.pt does not fit Sequential: it has no '4\.bias'$"),
        (write_more, r".*does not fit Sequential: it has '5\.weight', which the network has not$"),
        (write_shape, r".*it has '0\.weight' of shape \(4, 3, 7, 7\), the network of \(4, 3, 3, 3\)$"),
        (
            write_wrapped,
            r".*and 12 more\. Its names begin with 'module\.': write the state_dict of the network in",
        ),
        (write_nested, r"weights\.pt holds a dict with the keys epoch, state_dict; wanted tensors by name"),
        (write_list, r"weights\.pt holds <class 'list'>; wanted tensors by name"),
        (write_junk, r"weights\.pt cannot be read: error: unpack requires.*\. Wanted model\.state_dict\(\), in a"),
        (write_script, r"weights\.pt cannot be read: .*TorchScript archive"),
        (write_numbers, r"weights\.pt holds a dict with the keys 0, 1, 2, 3, 4; wanted tensors by name"),
        (write_instead(lambda: torch.zeros(2).to_sparse()), r".*: it has '4\.bias' as a sparse tensor; wanted a dense"),
        (write_instead(quantized), r".*: it has '4\.bias' as a quantized tensor; wanted a dense one$"),
        (
            write_instead(lambda: torch.zeros(2, device="meta")),
            r".*: it has '4\.bias' as a meta tensor; wanted a dense",
        ),
        (write_instead(lambda: torch.zeros(2) * 1j), r".*: it has '4\.bias' as a complex tensor; wanted a dense one$"),
        (write_fifo, r"weights\.pt is a FIFO; wanted a regular file$"),
        (write_zeros, r"weights\.pt is a device; wanted a regular file$"),
        (write_folder, r"weights\.pt is a folder; wanted a regular file$"),
        (write_packed, r"weights\.pt is compressed: its [\d,]+ bytes unpack to 4,.*; write it uncompressed$"),
        (write_nothing, r"weights\.pt cannot be read: No such file or directory$"),
    ],
)
def test_weights_that_do_not_fit_are_one_line(fails, tiny, tmp_path, write, message):
    write(tiny.with_norm().state_dict())
    assert re.match(message, fails("fold", "tiny:with_norm", "--weights", "weights.pt", "--input", "2x3x8x8"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("name", ["x" * 300 + ".safetensors", "x" * 300, "no\x1b[31m\n"])
def test_names_that_the_system_refuses_or_a_terminal_acts_on_are_one_line(fails, name):
    found = fails("fold", "tiny:with_norm", "--weights", name, "--input", "2x3x8x8")
    assert found.isprintable()
    assert re.search(r" cannot be read: (File name too long|No such file or directory)$", found)


@pytest.mark.usefixtures("tiny")
def test_a_network_that_refuses_its_weights_in_its_own_way_is_one_line(fails, tiny, monkeypatch):
    def refuse(*_args, **_options):
        raise RuntimeError("Error(s) in loading:\n\tI want more")

    torch.save(tiny.with_norm().state_dict(), "weights.pt")
    monkeypatch.setattr(nn.Sequential, "load_state_dict", refuse)
    found = fails("fold", "tiny:with_norm", "--weights", "weights.pt", "--input", "2x3x8x8")
    assert found == "weights.pt does not fit Sequential: RuntimeError: Error(s) in loading: I want more"


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("ending", [".onnx", ".pt2"])
def test_a_whole_network_in_place_of_weights_is_one_line(fails, ending):
    found = fails("fold", "tiny:with_norm", "--weights", f"net{ending}", "--input", "2x3x8x8")
    assert found.startswith(f"net{ending} ends in {ending}, as whole networks do; wanted the tensors alone")


def test_many_faults_are_the_first_five(fails, tiny):
    save_file(tiny.plain().state_dict(), "weights.safetensors")
    found = fails("fold", "torchvision.models:resnet18", "--weights", "weights.safetensors", "--input", "2x3x8x8")
    assert re.search(r"it has no 'conv1\.weight'; it has no 'bn1\.weight'.*; and \d+ more$", found)


def test_without_safetensors_the_message_says_what_to_install(tiny, tmp_path):
    save_file(tiny.with_norm().state_dict(), "weights.safetensors")
    arguments = ("recalibrate", "tiny:with_norm", "--weights", "weights.safetensors", "--data", "tiny:batches")
    done = batchnorm(*arguments, missing=["safetensors"], cwd=tmp_path)
    assert done.stderr == "batchnorm: .safetensors files need safetensors: pip install 'batchnorm[files]'\n"
    assert done.returncode == 1
