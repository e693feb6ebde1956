"""The network of Fig. 5: shapes, parameters, initial weights, errors."""

import pytest
import torch
from torch import nn

import batchnorm as bn
from batchnorm.paper.inception.network import MODULES, SMALL, Inception, Module, PerActivation
from batchnorm.paper.inception.variants import ENSEMBLE, VARIANTS

# Fig. 5: the output of each module for a 224x224 image, (maps, side). 4c and 4d have the printed 576.
OUTPUTS = {
    "3a": (256, 28), "3b": (320, 28), "3c": (576, 14), "4a": (576, 14), "4b": (576, 14),
    "4c": (576, 14), "4d": (576, 14), "4e": (1024, 7), "5a": (1024, 7), "5b": (1024, 7),
}  # fmt: skip


def shapes(network, images):
    """Return the output shape of each module and each layer of the stem, by name."""
    seen = {}
    layers = {**network.inception, **{f"stem {name}": layer for name, layer in network.stem.named_children()}}
    handles = [
        layer.register_forward_hook(lambda _, __, output, name=name: seen.update({name: tuple(output.shape)}))
        for name, layer in layers.items()
    ]
    with torch.no_grad():
        network(images)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("batch_norm", [False, True])
def test_every_output_of_fig_5(batch_norm):
    network = Inception(batch_norm=batch_norm, lrn=True)
    seen = shapes(network, torch.randn(2, 3, 224, 224))
    assert {name: seen[name] for name in OUTPUTS} == {n: (2, maps, side, side) for n, (maps, side) in OUTPUTS.items()}
    stem = [shape[1:3] for name, shape in seen.items() if name.startswith("stem")]
    # 7x7/2 by channel, 1x1, pool, LRN, 1x1, 3x3, LRN, pool
    assert stem == [(24, 112), (64, 112), (64, 56), (64, 56), (64, 56), (192, 56), (192, 56), (192, 28)]


def test_the_parameters_are_those_of_the_reading_that_fits():
    assert sum(p.numel() for p in Inception(batch_norm=True).parameters()) == 11_188_288


def test_bn_stands_before_each_of_69_nonlinearities_and_takes_the_bias():
    network = Inception(batch_norm=True)
    layers = [layer for layer in network.modules() if isinstance(layer, bn.BatchNorm2d)]
    assert len(layers) == 69
    assert {layer.activation for layer in layers} == {"relu"}
    assert all(layer.bias is None for layer in network.modules() if isinstance(layer, nn.Conv2d))
    plain = Inception(activation="sigmoid")
    assert sum(isinstance(layer, nn.Sigmoid) for layer in plain.modules()) == 69
    # Only the depthwise half of the separable stem has none: no nonlinearity stands between it and the 1x1 half.
    assert sum(c.bias is None for c in plain.modules() if isinstance(c, nn.Conv2d)) == 1


def test_the_module_concatenates_its_four_branches_in_the_tables_order():
    module = Inception(batch_norm=True, modules=("3a",), size=28, channels=1).inception["3a"].eval()
    assert isinstance(module, Module)
    x = torch.randn(2, 192, 28, 28)
    with torch.no_grad():
        one, three, double, pooled = (branch(x) for branch in module.branches)
        assert [y.shape[1] for y in (one, three, double, pooled)] == [64, 64, 96, 32]
        torch.testing.assert_close(module(x), torch.cat([one, three, double, pooled], 1))
    kernels = [[c.kernel_size[0] for c in b.modules() if isinstance(c, nn.Conv2d)] for b in module.branches]
    assert kernels == [[1], [1, 3], [1, 3, 3], [1]]


@pytest.mark.parametrize("size", [28, 32])
@pytest.mark.parametrize("modules", [SMALL, MODULES])
def test_small_images_start_at_full_resolution(size, modules):
    network = Inception(10, batch_norm=True, channels=1, size=size, width=1 / 8, modules=modules)
    seen = shapes(network, torch.randn(2, 1, size, size))
    assert seen[modules[0]][2] == (size if modules[0] == "3a" else size // 2)
    assert seen["5b"] == (2, 128, size // 4, size // 4)
    assert network(torch.randn(2, 1, size, size)).shape == (2, 10)


def test_the_small_network_has_a_few_tens_of_thousands_of_parameters():
    network = Inception(10, batch_norm=True, channels=1, size=28, width=1 / 8, modules=SMALL)
    assert sum(p.numel() for p in network.parameters()) == 74_698


def test_per_activation_bn_has_a_gamma_per_location_and_normalizes_over_the_batch_alone():
    network = Inception(10, batch_norm=True, channels=1, size=28, width=1 / 8, modules=SMALL, per_activation=("5b",))
    layers = [layer for layer in network.inception["5b"].modules() if isinstance(layer, PerActivation)]
    assert len(layers) == 7
    assert layers[0].norm.weight.shape == (44 * 7 * 7,)
    assert not any(isinstance(layer, PerActivation) for layer in network.inception["4e"].modules())
    layer = PerActivation(3, 2, None)
    x = torch.randn(64, 3, 2, 2) * 4 + 1
    y = layer(x)
    torch.testing.assert_close(y.mean(0), torch.zeros(3, 2, 2), atol=1e-6, rtol=0)
    torch.testing.assert_close(y.var(0, unbiased=False), torch.ones(3, 2, 2), atol=1e-4, rtol=0)


def test_initial_weights_keep_the_variance_and_scale():
    torch.manual_seed(0)
    weight = Inception(batch_norm=True, init_scale=1.5).get_parameter("inception.5b.branches.1.1.0.weight")
    assert weight.std().item() == pytest.approx(1.5 * (2 / (192 * 9)) ** 0.5, rel=0.01)


@pytest.mark.parametrize("variant", [*VARIANTS, *ENSEMBLE], ids=lambda v: v.name)
def test_every_variant_trains_and_folds(variant):
    torch.manual_seed(1)
    shape = {"channels": 1, "size": 28, "width": 1 / 8, "modules": ("3c", "5b")}
    settings = ("batch_norm", "activation", "lrn", "dropout", "init_scale", "per_activation")
    network = Inception(10, **{name: getattr(variant, name) for name in settings}, **shape)
    images = torch.randn(8, 1, 28, 28)
    nn.functional.cross_entropy(network(images), torch.arange(8)).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    if variant.batch_norm:
        folded = bn.fold(network.eval(), images).model
        torch.testing.assert_close(folded(images), network(images), rtol=1e-4, atol=1e-4)
        assert not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in folded.modules())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modules": ("3a", "6a")}, "modules: '6a' is not one of 3a, 3b"),
        ({"activation": "tanh"}, "activation: 'tanh' is not one of relu, sigmoid"),
        ({"per_activation": ("5b",), "modules": ("3a",)}, "per_activation: '5b' is not one of 3a"),
        ({"width": 0.001}, r"width 0\.001 leaves a layer of 64 maps without any"),
    ],
)
def test_what_no_network_can_be_made_of_is_an_error(settings, message):
    with pytest.raises(bn.BatchNormError, match=message):
        Inception(**settings)
