"""Test what fold returns and refuses: the new network, its error and precision, and the table."""

import copy
import pickle
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.folding import FLAT, IMAGE, ROUNDED, error, randomized
from support.networks import Call
from support.paths import ROOT
from torch import nn

import batchnorm as bn


def flow(layers, x):
    if x.shape[1] == 4:  # symbolic tracing stops here
        x = layers["norm"](layers["conv"](x))
    return F.relu(x)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_control_flow_on_shapes_is_traced_with_the_example_and_takes_any_batch(batch):
    model = randomized(Call(flow, conv=nn.Conv2d(4, 6, 3), norm=nn.BatchNorm2d(6)))
    result = bn.fold(model, torch.randn(1, 4, 7, 7))
    assert result.folded == 1
    assert error(model, result.model, torch.randn(batch, 4, 7, 7)) < ROUNDED


def test_the_given_model_is_untouched():
    model = randomized(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Dropout())).train()
    model[1].eval()
    before, modes = copy.deepcopy(model.state_dict()), [layer.training for layer in model.modules()]
    with torch.no_grad():
        for parameter in bn.fold(model, torch.randn(IMAGE)).model.parameters():
            parameter.zero_()  # the two must share no storage
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [layer.training for layer in model.modules()] == modes


def test_the_result_is_in_eval_mode_whatever_the_model_was():
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)).train()
    assert not any(layer.training for layer in bn.fold(model, torch.randn(IMAGE)).model.modules())


def test_the_result_copies_and_pickles_without_this_package(tmp_path):
    model, x = nn.Sequential(nn.ReLU(), bn.BatchNorm2d(4, activation="relu"), nn.Conv2d(4, 6, 3)), torch.randn(IMAGE)
    folded = bn.fold(randomized(model), x).model
    assert torch.equal(copy.deepcopy(folded)(x), folded(x))
    (tmp_path / "folded.pkl").write_bytes(pickle.dumps((folded, x, folded(x).detach())))
    code = """
import pickle, sys
sys.modules["batchnorm"] = None  # an import fails
folded, x, y = pickle.load(open(sys.argv[1], "rb"))
assert (folded(x) == y).all()
"""
    command = [sys.executable, "-c", code, str(tmp_path / "folded.pkl")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_result_exports_with_a_free_batch_size():
    model, x = (
        randomized(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3))),
        torch.randn(IMAGE),
    )
    folded = bn.fold(model, x).model
    program = torch.export.export(folded, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert error(model, program.module(), torch.randn(5, 4, 7, 7)) < ROUNDED


def test_several_inputs_by_name_and_none():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6)

        def forward(self, x, scale=None, shift=None):
            y = self.norm(self.linear(x))
            y = y if scale is None else y * scale
            return {"y": y if shift is None else y + shift}

    model, x, shift = randomized(Two()), torch.randn(FLAT), torch.randn(5, 1)
    result = bn.fold(model, {"x": x, "shift": shift})
    assert result.folded == 1
    torch.testing.assert_close(result.model(x=x, shift=shift), model(x, shift=shift), rtol=1e-5, atol=1e-6)


def test_max_error_is_measured_in_both_precisions():
    model, x = randomized(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))), torch.randn(IMAGE)
    result = bn.fold(model, x)
    assert set(result.errors) == {"float32", "float64"}
    assert result.max_error == max(result.errors.values())
    assert result.errors["float64"] == pytest.approx(error(model, result.model, x), rel=0.9)
    assert 0 < result.max_error < ROUNDED


def test_an_error_above_tolerance_raises_instead():
    model, x = randomized(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))), torch.randn(IMAGE)
    with pytest.raises(bn.BatchNormError, match=r"changed its output by .*, more than tolerance=1.0e-12"):
        bn.fold(model, x, tolerance=1e-12)


@pytest.mark.parametrize("layer", [nn.BatchNorm2d, bn.BatchNorm2d])  # our layer keeps its statistics in float32
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_precision_of_the_network_is_kept(dtype, layer):
    model, x = randomized(nn.Sequential(nn.Conv2d(4, 6, 3), layer(6))), torch.randn(IMAGE)
    result = bn.fold(model.to(dtype), x.to(dtype))
    assert {p.dtype for p in result.model.parameters()} == {dtype}
    assert result.model(x.to(dtype)).dtype == dtype


def test_a_narrow_network_may_differ_by_its_own_rounding_and_not_by_more():
    model, x = randomized(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))).bfloat16(), torch.randn(IMAGE)
    result = bn.fold(model, x.bfloat16())
    assert set(result.errors) == {"bfloat16", "float64"}
    assert 1e-4 < result.max_error < 16 * 2**-7
    with pytest.raises(bn.BatchNormError, match=r"more than tolerance=1.0e-04"):
        bn.fold(model, x.bfloat16(), tolerance=1e-4)


def test_channels_last_weights_stay_so():
    layers = (nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))
    model = randomized(nn.Sequential(*layers)).to(memory_format=torch.channels_last)
    result = bn.fold(model, torch.randn(IMAGE).to(memory_format=torch.channels_last))
    assert result.folded == 2
    assert result.model.get_parameter("2.weight").is_contiguous(memory_format=torch.channels_last)


class FixedBatch(nn.Module):
    """A network that computes something else for four examples or more."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x):
        return self.norm(self.conv(x)) if len(x) < 4 else x.relu()


def test_a_network_that_is_another_for_another_batch_size_is_refused():
    with pytest.raises(bn.BatchNormError, match=r"changed its output by inf|cannot be traced"):
        bn.fold(randomized(FixedBatch()), torch.randn(IMAGE))


def test_a_network_that_is_random_in_eval_is_refused():
    layers = {"conv": nn.Conv2d(4, 4, 3), "norm": nn.BatchNorm2d(4)}
    model = Call(lambda layers, x: layers["norm"](layers["conv"](F.dropout(x, 0.5))), **layers)
    with pytest.raises(bn.BatchNormError, match=r"cannot be traced.*or is random"):
        bn.fold(model, torch.randn(IMAGE))


@pytest.mark.parametrize("tolerance", [-1e-4, float("nan"), "1e-4", True])
def test_a_tolerance_that_is_no_number_of_zero_or_more_is_refused(tolerance):
    with pytest.raises(bn.BatchNormError, match=f"tolerance must be a number of 0 or more.*got {tolerance!r}"):
        bn.fold(nn.Sequential(nn.ReLU()), torch.randn(2), tolerance=tolerance)


def test_a_network_without_batch_norm_says_so():
    result = bn.fold(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(FLAT), tolerance=np.float64(0.0))
    found, counts = str(result).splitlines()
    assert found == "no batch normalization found"
    assert counts.startswith("0 folded, 0 affine, 0 kept; relative error 0.0e+00 in float32")


def test_inputs_that_do_not_fit_are_refused():
    with pytest.raises(bn.BatchNormError, match=r"example_inputs do not fit Sequential\.forward: too many positional"):
        bn.fold(nn.Sequential(nn.ReLU()), (torch.randn(2), torch.randn(2)))


def test_the_result_prints_as_a_table():
    model = randomized(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.BatchNorm2d(6), nn.ReLU()))
    result = bn.fold(model, torch.randn(IMAGE))
    lines = str(result).splitlines()
    assert (result.folded, result.affine, result.kept) == (1, 1, 0)
    assert lines[0].split() == ["name", "outcome", "into", "reason"]
    assert lines[2].split() == ["1", "folded", "0"]
    assert lines[3].split()[:4] == ["3", "affine", "it", "follows"]
    assert lines[4].startswith("1 folded, 1 affine, 0 kept; relative error ")


def test_the_code_of_the_docs_runs_and_prints_what_they_say(capsys):
    page = (ROOT / "docs" / "fold.md").read_text()
    code, printed, fuse, printed_by_fuse = re.findall(r"```(?:python)?\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code.replace("print(result)", ""), names)
    assert (
        str(names["result"]).splitlines()[:-1] == printed.splitlines()[:-1]
    )  # the last line has the errors, which depend on the machine
    exec(fuse, names)
    assert capsys.readouterr().out == printed_by_fuse
