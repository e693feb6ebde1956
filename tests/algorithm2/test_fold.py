"""Test folding. The oracle is the network's own eval output in float64; each case states which layers fold."""

import copy
import pickle
import re
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support.networks import Call
from support.paths import ROOT
from torch import nn
from torch.fx.experimental.optimization import fuse as fx_fuse
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import prune

import batchnorm as bn

# Folded weights are rounded to float32 once: 2^-24 relative each, and a few layers add up.
ROUNDED = 1e-6


def randomized(model, seed=0):
    """Set random statistics and affine parameters, with a negative first gamma. Return the model in eval mode."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor, low, high):
        tensor.data.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    for layer in model.modules():
        if isinstance(layer, _BatchNorm):
            for tensor, low, high in (
                (layer.running_mean, -1.0, 1.0),
                (layer.running_var, 0.5, 2.0),
                (layer.weight, 0.2, 1.0),
                (layer.bias, -1.0, 1.0),
            ):
                if tensor is not None:
                    uniform(tensor, low, high)
            if layer.affine:
                layer.weight.data[0] *= -1
    return model.eval()


def error(model, other, *inputs):
    """Return the largest difference in float64, relative to the largest output."""
    inputs = [x.double() for x in inputs]
    with torch.no_grad():
        wanted = copy.deepcopy(model).double().eval()(*inputs)
        return float((copy.deepcopy(other).double()(*inputs) - wanted).abs().max() / wanted.abs().max())


def norms(model):
    return [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]


class Cropped(nn.Module):
    def forward(self, x):
        return x[:, :, 1:-1, 1:-1]


class Transposed(nn.Module):
    def forward(self, x):
        return x.transpose(1, 2)


class BatchNormReLU(nn.BatchNorm2d):
    """A subclass that adds an activation, as timm's BatchNormAct2d."""

    def forward(self, input):
        running = (self.running_mean, self.running_var, self.weight, self.bias)
        return F.relu(F.batch_norm(input, *running, self.training, self.momentum or 0.0, self.eps))


IMAGE, SEQUENCE, VOLUME, FLAT = (2, 4, 7, 7), (2, 4, 9), (2, 4, 5, 5, 5), (5, 4)

FOLDED = {
    "conv1d": ((nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6)), SEQUENCE),
    "conv2d, padded, no bias": ((nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)), IMAGE),
    "conv3d": ((nn.Conv3d(4, 6, 3), nn.BatchNorm3d(6)), VOLUME),
    "grouped": ((nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)), IMAGE),
    "depthwise": ((nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8)), IMAGE),
    "transposed 1d": ((nn.ConvTranspose1d(4, 6, 3, stride=2), nn.BatchNorm1d(6)), SEQUENCE),
    "transposed": ((nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6)), IMAGE),
    "transposed, grouped": ((nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)), IMAGE),
    "transposed 3d": ((nn.ConvTranspose3d(4, 6, 3), nn.BatchNorm3d(6)), VOLUME),
    "linear": ((nn.Linear(4, 6), nn.BatchNorm1d(6)), FLAT),
    "linear over a sequence": ((nn.Linear(9, 6), nn.Flatten(0, 1), nn.BatchNorm1d(6)), SEQUENCE),
    "linear, channels moved": ((nn.Linear(9, 6), Transposed(), nn.BatchNorm1d(6)), SEQUENCE),
    "not affine": ((nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False)), IMAGE),
    "sync": ((nn.Conv2d(4, 6, 3), nn.SyncBatchNorm(6)), IMAGE),
    "our own layer": ((nn.Conv2d(4, 6, 3), bn.BatchNorm2d(6, activation="relu")), IMAGE),
    "our own layer, leaky": (
        (nn.Conv2d(4, 6, 3), bn.BatchNorm2d(6, activation="leaky_relu", negative_slope=0.2)),
        IMAGE,
    ),
    "our own layer, sigmoid": ((nn.Conv2d(4, 6, 3), bn.BatchNorm2d(6, activation="sigmoid")), IMAGE),
    "a subclass with an activation": ((nn.Conv2d(4, 6, 3), BatchNormReLU(6)), IMAGE),
    "through Dropout": ((nn.Conv2d(4, 6, 3), nn.Dropout2d(), nn.BatchNorm2d(6)), IMAGE),
    "through Identity": ((nn.Conv2d(4, 6, 3), nn.Identity(), nn.BatchNorm2d(6)), IMAGE),
    "through average pooling": ((nn.Conv2d(4, 6, 3), nn.AvgPool2d(2), nn.BatchNorm2d(6)), IMAGE),
    "through the global mean": ((nn.Conv2d(4, 6, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(6)), IMAGE),
    "through upsampling": (
        (nn.Conv2d(4, 6, 3), nn.Upsample(scale_factor=2, mode="bilinear"), nn.BatchNorm2d(6)),
        IMAGE,
    ),
    "through a crop": ((nn.Conv2d(4, 6, 3), Cropped(), nn.BatchNorm2d(6)), IMAGE),
    "through a reshape to maps": ((nn.Linear(4, 24), nn.Unflatten(1, (6, 2, 2)), nn.BatchNorm2d(6)), FLAT),
    "through pixel shuffle": ((nn.Conv2d(4, 6, 3), nn.ChannelShuffle(2), nn.BatchNorm2d(6)), IMAGE),
    "before a convolution": ((nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3)), IMAGE),
    "before a convolution that reflects": (
        (nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect")),
        IMAGE,
    ),
    "before a grouped convolution": ((nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, groups=2)), IMAGE),
    "before a linear layer": ((nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 6)), FLAT),
    "before flatten and a linear layer": ((nn.ReLU(), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(196, 6)), IMAGE),
    "before pooling and a linear layer": (
        (nn.ReLU(), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6)),
        IMAGE,
    ),
    "after another": ((nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.BatchNorm2d(6)), IMAGE),
    "around a convolution": ((nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)), IMAGE),
}


@pytest.mark.parametrize("case", FOLDED)
def test_every_batch_norm_is_folded_and_the_function_kept(case):
    layers, shape = FOLDED[case]
    torch.manual_seed(0)
    model, x = randomized(nn.Sequential(*layers)), torch.randn(shape)
    result = bn.fold(model, x)
    assert [row.outcome for row in result.rows] == ["folded"] * len(norms(model)), result
    assert not norms(result.model)
    assert error(model, result.model, x) < ROUNDED


def functional(layers, x):
    y = layers["conv"](x)
    norm = layers["norm"]
    return F.relu(F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.1, norm.eps))


def functional_conv(layers, x):
    conv = layers["conv"]
    return layers["norm"](F.conv2d(x, conv.weight, conv.bias, 1, 1))


def twice(layers, x):
    return layers["b"](layers["conv"](F.relu(layers["a"](layers["conv"](x)))))


def same_norm_twice(layers, x):
    return layers["norm"](layers["conv"](F.relu(layers["norm"](layers["conv"](x)))))


def concatenated(layers, x):
    return layers["norm"](torch.cat([layers["a"](x), layers["b"](x)], 1))


def concatenated_before_linear(layers, x):
    x = F.relu(x).mean((2, 3))
    return layers["linear"](torch.cat([layers["norm"](x), x], 1))


def added(layers, x):
    return layers["norm"](layers["a"](x) + layers["b"](x))


def constants(layers, x):
    return layers["norm"](2 * layers["conv"](x) + layers["conv"].bias.reshape(1, -1, 1, 1) - 3.0)


def chunked(layers, x):
    first, second = layers["norm"](F.relu(x)).chunk(2, 1)
    return layers["a"](second) + layers["b"](first)


def beside(layers, x):
    return F.relu(layers["norm"](x) + layers["conv"](x))


def residual_before(layers, x):
    return layers["norm"](layers["conv"](x) + x)


def reshaped_as(layers, x):
    y = layers["linear"](x)
    return layers["norm"](y.flatten(0, 1)).reshape_as(y)


SAME_MAPS = {"conv": nn.Conv2d(4, 4, 3, padding=1), "norm": nn.BatchNorm2d(4)}
CALLS = {
    "F.batch_norm": (functional, {"conv": nn.Conv2d(4, 6, 3), "norm": nn.BatchNorm2d(6)}, IMAGE, 1),
    "F.conv2d": (functional_conv, {"conv": nn.Conv2d(4, 6, 3), "norm": nn.BatchNorm2d(6)}, IMAGE, 1),
    "one convolution called twice": (
        twice,
        {"conv": nn.Conv2d(4, 4, 3), "a": nn.BatchNorm2d(4), "b": nn.BatchNorm2d(4)},
        IMAGE,
        2,
    ),
    "both called twice": (same_norm_twice, {"conv": nn.Conv2d(4, 4, 3), "norm": nn.BatchNorm2d(4)}, IMAGE, 2),
    "concatenation": (
        concatenated,
        {"a": nn.Conv2d(4, 3, 3), "b": nn.Conv2d(4, 5, 3), "norm": nn.BatchNorm2d(8)},
        IMAGE,
        1,
    ),
    "before a concatenation": (
        concatenated_before_linear,
        {"norm": nn.BatchNorm1d(4), "linear": nn.Linear(8, 3)},
        IMAGE,
        1,
    ),
    "a sum": (added, {"a": nn.Conv2d(4, 6, 3), "b": nn.Conv2d(4, 6, 3), "norm": nn.BatchNorm2d(6)}, IMAGE, 1),
    "constants added and multiplied": (constants, {"conv": nn.Conv2d(4, 6, 3), "norm": nn.BatchNorm2d(6)}, IMAGE, 1),
    "chunks": (chunked, {"norm": nn.BatchNorm2d(4), "a": nn.Conv2d(2, 6, 3), "b": nn.Conv2d(2, 6, 3)}, IMAGE, 1),
    "beside a convolution": (beside, SAME_MAPS, IMAGE, 1),
    "after a convolution and its input": (residual_before, copy.deepcopy(SAME_MAPS), IMAGE, 1),
    "shaped like another": (reshaped_as, {"linear": nn.Linear(9, 6), "norm": nn.BatchNorm1d(6)}, SEQUENCE, 1),
}


@pytest.mark.parametrize("case", CALLS)
def test_functions_and_shared_layers_fold(case):
    forward, layers, shape, count = CALLS[case]
    torch.manual_seed(0)
    model, x = randomized(Call(forward, **layers)), torch.randn(shape)
    result = bn.fold(model, x)
    assert [row.outcome for row in result.rows] == ["folded"] * count, result
    assert error(model, result.model, x) < ROUNDED


def test_torch_fx_is_wrong_where_one_convolution_is_called_twice_and_we_are_not():
    torch.manual_seed(0)
    layers = {"conv": nn.Conv2d(4, 4, 3), "a": nn.BatchNorm2d(4), "b": nn.BatchNorm2d(4)}
    model, x = randomized(Call(twice, **layers)), torch.randn(IMAGE)
    assert error(model, fx_fuse(model), x) > 0.4
    assert error(model, bn.fold(model, x).model, x) < ROUNDED


def two_readers(layers, x):
    y = layers["conv"](x)
    return layers["norm"](y) * y


def two_norms(layers, x):
    y = layers["conv"](x)
    return F.relu(layers["norm"](y)) + F.relu(layers["other"](y))


def written(layers, x):
    y = F.relu(x)
    z = layers["norm"](y)
    y.mul_(0.0)
    return layers["conv"](z) + y.sum()


def joined_twice(layers, x):
    y = layers["conv"](x)
    return F.relu(layers["norm"](torch.cat([y, y], 1)))


CONV, NORM = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
AFFINE = {
    "zero padding after it": (
        nn.Sequential(nn.ReLU(), copy.deepcopy(NORM), nn.Conv2d(4, 6, 3, padding=1)),
        "another constant than zero at its border",
    ),
    "padding='same' after it": (
        nn.Sequential(nn.ReLU(), copy.deepcopy(NORM), nn.Conv2d(4, 6, 3, padding="same")),
        "another constant than zero at its border",
    ),
    "a transposed convolution after it": (
        nn.Sequential(nn.ReLU(), copy.deepcopy(NORM), nn.ConvTranspose2d(4, 6, 3)),
        "another constant than zero at its border",
    ),
    "a nonlinearity on both sides": (nn.Sequential(nn.ReLU(), copy.deepcopy(NORM), nn.ReLU()), "precedes ReLU"),
    "the network's input": (nn.Sequential(copy.deepcopy(NORM), nn.ReLU()), "the network's input"),
    "padded average pooling": (
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.AvgPool2d(3, padding=1), copy.deepcopy(NORM)),
        "follows AvgPool2d",
    ),
    "average pooling by another divisor": (
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.AvgPool2d(2, divisor_override=3), copy.deepcopy(NORM)),
        "follows AvgPool2d",
    ),
    "one output concatenated twice": (
        Call(joined_twice, conv=copy.deepcopy(CONV), norm=nn.BatchNorm2d(8)),
        "follows cat",
    ),
    "max pooling under negative gammas": (
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.MaxPool2d(2), copy.deepcopy(NORM)),
        "follows MaxPool2d",
    ),
    "an output read elsewhere": (Call(two_readers, conv=CONV, norm=NORM), "layers.conv is used elsewhere"),
    "one convolution under two norms": (
        Call(two_norms, conv=copy.deepcopy(CONV), norm=copy.deepcopy(NORM), other=nn.BatchNorm2d(4)),
        "layers.conv is used elsewhere",
    ),
    "an input written to in place": (
        Call(written, conv=copy.deepcopy(CONV), norm=copy.deepcopy(NORM)),
        "written to in place",
    ),
}


@pytest.mark.parametrize("case", AFFINE)
def test_what_cannot_be_folded_becomes_one_affine_map(case):
    model, reason = AFFINE[case]
    model, x = randomized(model), torch.randn(IMAGE)
    result = bn.fold(model, x)
    assert {row.outcome for row in result.rows} == {"affine"}, result
    assert reason in result.rows[0].reason, result
    assert not norms(result.model)
    assert not [name for name in result.model.state_dict() if "running" in name or "tracked" in name]
    assert error(model, result.model, x) < ROUNDED


def test_max_pooling_is_passed_where_every_gamma_is_positive():
    model = randomized(nn.Sequential(nn.Conv2d(4, 4, 3), nn.MaxPool2d(2), nn.BatchNorm2d(4)))
    for gamma in norms(model):
        gamma.weight.data.abs_()
    x = torch.randn(IMAGE)
    result = bn.fold(model, x)
    assert result.rows[0].into == ("0",)
    assert error(model, result.model, x) < ROUNDED


def test_a_batch_norm_without_running_statistics_is_kept():
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    result = bn.fold(model, torch.randn(IMAGE))
    assert (result.rows[0].outcome, result.rows[0].reason) == ("kept", "normalizes by its own batch")
    assert (result.folded, result.affine, result.kept) == (0, 0, 1)


class Standardized(nn.Conv2d):
    """A convolution with weight standardization. Scaling its weight changes nothing."""

    def forward(self, input):
        weight = self.weight / self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(input, weight, self.bias)


class Opaque(nn.Conv2d):
    """A convolution that cannot be traced. With `power=1` it uses its weight as it is."""

    def __init__(self, *args, power=1):
        super().__init__(*args)
        self.power = power

    def forward(self, input):
        if float(input.sum()) == float("inf"):
            return input
        return F.conv2d(input, self.weight**self.power, self.bias)


def test_a_convolution_that_standardises_its_weight_folds_into_what_it_computes():
    model, x = randomized(nn.Sequential(Standardized(4, 6, 3), nn.BatchNorm2d(6))), torch.randn(IMAGE)
    result = bn.fold(model, x)
    assert result.folded == 1
    assert error(model, result.model, x) < ROUNDED


@pytest.mark.parametrize(("power", "outcome"), [(1, "folded"), (2, "affine")])
def test_an_untraceable_subclass_is_believed_only_if_it_is_affine_in_its_weight(power, outcome):
    model, x = randomized(nn.Sequential(Opaque(4, 6, 3, power=power), nn.BatchNorm2d(6))), torch.randn(IMAGE)
    result = bn.fold(model, x)
    assert result.rows[0].outcome == outcome, result
    assert error(model, result.model, x) < ROUNDED


def test_a_hook_between_the_two_keeps_them_apart():
    model, x = randomized(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))), torch.randn(IMAGE)
    model[0].register_forward_hook(lambda _, __, output: output.relu())
    result = bn.fold(model, x)
    assert result.rows[0].outcome == "affine", result
    assert error(model, result.model, x) < ROUNDED


def test_a_batch_norm_with_a_hook_is_kept():
    model, x = randomized(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))), torch.randn(IMAGE)
    model[1].register_forward_hook(lambda _, __, output: output.relu())
    result = bn.fold(model, x)
    assert (result.rows[0].outcome, result.rows[0].reason) == ("kept", "has hooks")
    assert error(model, result.model, x) < ROUNDED


# torch warns that this weight_norm is deprecated. Some networks still use it.
BY_HOOK = {
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "weight_norm": nn.utils.weight_norm,
    "spectral_norm": nn.utils.spectral_norm,
}


@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("computed", BY_HOOK)
def test_a_weight_that_a_hook_computes_is_folded_as_it_is(computed):
    torch.manual_seed(0)
    conv = BY_HOOK[computed](nn.Conv2d(4, 6, 3))
    model, x = randomized(nn.Sequential(conv, nn.BatchNorm2d(6))), torch.randn(IMAGE)
    result = bn.fold(model, x)
    assert result.folded == 1, result
    assert "weight" not in model[0]._parameters
    torch.testing.assert_close(result.model(x), model(x), rtol=1e-5, atol=1e-6)  # float32: a few roundings


class ByHook:
    """A hook that computes the weight from another parameter. torch does not know it."""

    def __call__(self, layer, _):
        layer.weight = layer.other * 2


def test_a_weight_that_some_other_hook_computes_is_left():
    model, x = randomized(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))), torch.randn(IMAGE)
    model[0].register_parameter("other", model[0]._parameters.pop("weight"))
    model[0].register_forward_pre_hook(ByHook())
    with torch.no_grad():
        wanted = model(x)
    result = bn.fold(model, x)
    assert result.rows[0].reason == "the weight of 0 is computed by a hook; it precedes the network's output"
    torch.testing.assert_close(result.model(x), wanted, rtol=1e-5, atol=1e-6)  # as above


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_a_parametrized_weight_is_folded_as_it_is(norm):
    model, x = randomized(nn.Sequential(norm(nn.Conv2d(4, 6, 3)), nn.BatchNorm2d(6))), torch.randn(IMAGE)
    result = bn.fold(model, x)
    assert result.folded == 1
    assert error(model, result.model, x) < ROUNDED


def test_tied_weights_stay_apart_after_folding():
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    model[2].weight = model[0].weight
    x = torch.randn(IMAGE)
    result = bn.fold(randomized(model), x)
    assert result.folded == 2
    assert error(model, result.model, x) < ROUNDED


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
    model = Call(lambda layers, x: layers["norm"](layers["conv"](F.dropout(x, 0.5))), conv=CONV, norm=NORM)
    with pytest.raises(bn.BatchNormError, match=r"cannot be traced.*or is random"):
        bn.fold(model, torch.randn(IMAGE))


def test_what_is_no_module_is_refused():
    with pytest.raises(bn.BatchNormError, match=r"wanted a network, a torch\.nn\.Module; got function"):
        bn.fold(lambda x: x, torch.randn(IMAGE))  # pyright: ignore[reportArgumentType]


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


# Random small networks


@st.composite
def networks(draw):
    """Draw a chain of blocks on 4 maps: convolutions, norms, activations, sums, concatenations, some layers shared."""
    kinds = ["conv", "grouped", "transposed", "norm", "relu", "pool", "dropout", "sum", "cat", "shared", "scaled"]
    return draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=8)), draw(st.integers(0, 1000))


class Chain(nn.Module):
    def __init__(self, kinds):
        super().__init__()
        self.kinds = kinds
        self.shared = nn.Conv2d(4, 4, 3, padding=1)
        make = {
            "conv": lambda: nn.Conv2d(4, 4, 3),
            "grouped": lambda: nn.Conv2d(4, 4, 3, padding=1, groups=2),
            "transposed": lambda: nn.ConvTranspose2d(4, 4, 3, padding=1),
            "norm": lambda: nn.BatchNorm2d(4),
            "relu": nn.ReLU,
            "pool": lambda: nn.AvgPool2d(2, stride=1),
            "dropout": nn.Dropout,
            "sum": lambda: nn.Conv2d(4, 4, 1),
            "cat": lambda: nn.Conv2d(4, 4, 1),
        }
        self.parts = nn.ModuleList(make.get(kind, nn.Identity)() for kind in kinds)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 if kind == "cat" else 4) for kind in kinds)

    def forward(self, x):
        for kind, part, norm in zip(self.kinds, self.parts, self.norms, strict=True):
            if kind == "sum":
                x = norm(x) + part(x)
            elif kind == "cat":
                first, second = norm(torch.cat([part(x), x], 1)).chunk(2, 1)
                x = first * second.sigmoid()
            elif kind == "shared":
                x = norm(self.shared(x))
            elif kind == "scaled":
                x = norm(x * 0.5 + 1)
            else:
                x = part(x)
        return x


@settings(max_examples=40, deadline=None, derandomize=True)
@given(networks())
def test_folding_any_small_network_keeps_its_function(network):
    kinds, seed = network
    torch.manual_seed(seed)
    model, x = randomized(Chain(kinds), seed), torch.randn(2, 4, 24, 24)
    result = bn.fold(model, x)
    assert not norms(result.model)
    assert error(model, result.model, x) < 10 * ROUNDED  # eight layers, gammas near 0 among them


# Known networks

TORCHVISION = ["resnet18", "efficientnet_b0", "mobilenet_v2", "shufflenet_v2_x0_5", "mnasnet0_5", "regnet_x_400mf"]
TIMM = ["levit_128s", "repvit_m0_9", "mobilenetv3_small_050", "ghostnet_050", "mobilevit_xxs", "tf_efficientnet_b0"]


def zoo_network(name):
    torch.manual_seed(0)
    if name in TIMM:
        timm = pytest.importorskip("timm")
        return randomized(timm.create_model(name)), 224 if name == "levit_128s" else 64
    torchvision = pytest.importorskip("torchvision")
    return randomized(torchvision.models.get_model(name, weights=None)), 64


@pytest.mark.parametrize("name", TORCHVISION + TIMM)
def test_a_known_network_folds_whole(name):
    model, size = zoo_network(name)
    result = bn.fold(model, torch.randn(1, 3, size, size), tolerance=1e-5)
    assert result.folded == len(result.rows) > 0, result


@pytest.mark.parametrize(
    "name", ["resnet18", "shufflenet_v2_x0_5", "mnasnet0_5", "mobilenetv3_small_050", "levit_128s"]
)
def test_onnx_runtime_computes_the_same(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, size = zoo_network(name)
    x = torch.randn(1, 3, size, size)
    folded = bn.fold(model, x).model
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's own warnings
        program = torch.onnx.export(folded, (x,), dynamo=True, verbose=False)
        assert program is not None
        wanted = model(x).numpy()
    program.save(tmp_path / "folded.onnx")
    stored = (tmp_path / "folded.onnx").read_bytes()
    assert b"BatchNormalization" not in stored
    session = onnxruntime.InferenceSession(tmp_path / "folded.onnx")
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert abs(got - wanted).max() / abs(wanted).max() < 1e-5  # float32 sums in another order
