"""`batchnorm insert`."""

import re

import pytest
import torch
from safetensors.torch import load_file


@pytest.mark.usefixtures("tiny")
def test_insert(run):
    output = run(
        "insert", "tiny:plain", "--input", "2x3x8x8", "--remove", "dropout", "--where", "4", "--out", "out.safetensors"
    )
    assert re.search(r"^3 +removed", output, re.MULTILINE)
    assert re.search(r"^4 +inserted .*4_bn +dropped", output, re.MULTILINE)
    assert re.search(r"^0 +skipped .*left out by where", output, re.MULTILINE)
    norm = {f"4_bn.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}
    assert set(load_file("out.safetensors")) == {"0.weight", "0.bias", "4.weight"} | norm


def test_insert_keeps_the_function_on_data(run, tiny):
    output = run("insert", "tiny:plain", "--input", "2x3x8x8", "--data", "tiny:batches", "--out", "out.safetensors")
    assert re.search(r"largest relative error: \d\.\de[-+]\d\d$", output, re.MULTILINE)
    z = tiny.plain()[0](torch.cat(tiny.batches())).detach()
    # float32, in another order of operations
    torch.testing.assert_close(load_file("out.safetensors")["0_bn.bias"], z.mean((0, 2, 3)), rtol=1e-5, atol=1e-5)
