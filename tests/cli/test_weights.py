"""Weights from a file: loaded, or one line that says what is wrong. No file runs code."""

import os
import re
import warnings
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
        (write_nothing, r"there is no file weights\.pt$"),
    ],
)
def test_weights_that_do_not_fit_are_one_line(fails, tiny, tmp_path, write, message):
    write(tiny.with_norm().state_dict())
    assert re.match(message, fails("fold", "tiny:with_norm", "--weights", "weights.pt", "--input", "2x3x8x8"))
    assert not (tmp_path / "ran").exists()


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
