"""`batchnorm fold`."""

import os
import re

import pytest
import torch
from safetensors.torch import load_file
from torch import nn


def images(n):
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def assert_close(got, wanted):
    # two float32 layers, in another order of operations
    torch.testing.assert_close(torch.as_tensor(got), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("tiny")
def test_fold_prints_the_table_the_error_and_the_latency(run):
    output = run("fold", "tiny:with_norm", "--input", "2x3x8x8")
    assert re.search(r"^1 +folded +0$", output, re.MULTILINE)
    assert re.search(r"1 folded, 0 affine, 0 kept; relative error \d\.\de-\d\d in float32", output)
    assert re.search(
        r"latency \d+\.\d\d ms before, \d+\.\d\d ms after \(median of 20, alternating, 1 threads\)", output
    )


def test_fold_of_a_network_without_batch_norm_says_so(run, tiny):
    tiny.linear = lambda: nn.Linear(4, 4)
    output = run("fold", "tiny:linear", "--input", "2x4")
    assert output.splitlines()[0] == "no batch normalization found"


def load_onnx(file):
    session = pytest.importorskip("onnxruntime").InferenceSession(file)
    (name,) = (value.name for value in session.get_inputs())
    return lambda x: session.run(None, {name: x.numpy()})[0]


LOADERS = {".onnx": load_onnx, ".pt2": lambda file: torch.export.load(file).module()}


@pytest.mark.parametrize("suffix", LOADERS)
@pytest.mark.parametrize("shape", ["1x3x8x8", "2x3x8x8"])
def test_fold_writes_a_network_for_any_batch_size(run, tiny, suffix, shape):
    output = run("fold", "tiny:with_norm", "--input", shape, "--out", f"out{suffix}")
    assert f"wrote out{suffix}, {os.path.getsize(f'out{suffix}') / 1e6:.1f} MB" in output  # noqa: PTH202
    loaded = LOADERS[suffix](f"out{suffix}")
    for n in (1, 2, 5):
        assert_close(loaded(images(n)), tiny.with_norm().eval()(images(n)))


def test_fold_writes_tensors_for_the_same_network_without_batch_norm(run, tiny):
    run("fold", "tiny:with_norm", "--input", "2x3x8x8", "--out", "out.safetensors")
    state = load_file("out.safetensors")
    assert sorted(state) == ["0.bias", "0.weight", "4.bias", "4.weight"]
    plain = tiny.with_norm().eval()
    plain[1] = nn.Identity()
    plain.load_state_dict(state)
    assert_close(plain(images(3)), tiny.with_norm().eval()(images(3)))


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("3", "--input wants a shape with its batch axis, such as 1x3x224x224; got '3'"),
        ("1x-3x8", "--input wants a shape with its batch axis, such as 1x3x224x224; got '1x-3x8'"),
        ("0x3x8x8", "--input wants a shape with its batch axis, such as 1x3x224x224; got '0x3x8x8'"),
        ("1x99999999999", "--input must have at most 2,147,483,648 values; got '1x99999999999'"),
        (f"1x3x{'9' * 5000}", "--input must have at most 2,147,483,648 values; got '1x3x9999"),
        ("1x٣", "--input wants a shape with its batch axis, such as 1x3x224x224; got '1x٣'"),
        ("1x5x8x8", "Sequential does not run on --input 1x5x8x8: .*to have 3 channels, but got 5"),
    ],
)
def test_a_shape_that_does_not_fit_is_one_line(fails, shape, message):
    assert re.match(message, fails("fold", "tiny:with_norm", "--input", shape))
