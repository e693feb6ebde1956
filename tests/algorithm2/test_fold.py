"""Test where folding moves each map. The oracle is the network in float64; each case states which layers fold."""

import copy

import pytest
import torch
import torch.nn.functional as F
from support.folding import FLAT, IMAGE, ROUNDED, SEQUENCE, VOLUME, error, norms, randomized
from support.networks import Call
from torch import nn
from torch.fx.experimental.optimization import fuse as fx_fuse
from torch.nn.utils import prune

import batchnorm as bn


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


def parallel(layers, x):
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
    "parallel to a convolution": (parallel, SAME_MAPS, IMAGE, 1),
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
