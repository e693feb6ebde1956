"""`batchnorm insert`."""

import re

import pytest
import torch
from safetensors.torch import load_file
from torch import nn


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


@pytest.mark.parametrize("remove", [(), ("--remove", "dropout")])
def test_a_network_that_got_no_batch_norm_is_not_written(run, fails, tiny, tmp_path, remove):
    tiny.linear = lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout())
    arguments = ("insert", "tiny:linear", "--input", "2x4", *remove)
    found = fails(*arguments, "--out", "out.safetensors")
    message = "nothing was inserted, so out.safetensors is not written: it would hold the network's own tensors"
    assert found == message
    assert not (tmp_path / "out.safetensors").exists()
    assert "0 inserted" in run(*arguments)  # without --out it is no error
