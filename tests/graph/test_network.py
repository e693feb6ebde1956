"""The view of a network: one name for every way to call a thing, what feeds what, any control flow on shapes."""

import pytest
import torch
import torch.nn.functional as F
from support.networks import Call
from torch import nn

from batchnorm.graph.ops import NONLINEARITIES
from batchnorm.graph.trace import trace

IMAGE = (2, 4, 7, 7)


def ops(model, x, **options):
    network = trace(model, x, **options)
    return [network.op(node) for node in network.graph.nodes if node.op.startswith("call")]


@pytest.mark.parametrize(
    "relu",
    [
        nn.ReLU(),
        nn.ReLU(inplace=True),
        F.relu,
        torch.relu,
        torch.relu_,
        lambda x: x.relu(),
        lambda x: x.relu_(),
        lambda x: F.relu(x, inplace=True),
        torch.ops.aten.relu.default,
    ],
)
def test_every_way_to_call_a_relu_has_one_name(relu):
    layers = {"relu": relu} if isinstance(relu, nn.Module) else {}
    model = Call(lambda layers, x: (layers["relu"] if layers else relu)(x + 1), **layers)
    assert ops(model, torch.randn(IMAGE)) == ["add", "relu"]
    assert "relu" in NONLINEARITIES


@pytest.mark.parametrize(
    ("call", "mutates"),
    [
        (lambda x: x.relu_(), True),
        (lambda x: F.relu(x, inplace=True), True),
        (nn.ReLU(inplace=True), True),
        (lambda x: x.add_(1), True),
        (lambda x: torch.ops.aten.relu_.default(x), True),
        (lambda x: x.relu(), False),
        (nn.ReLU(), False),
        (lambda x: x + 1, False),
    ],
)
def test_what_writes_in_place_is_seen(call, mutates):
    layers = {"call": call} if isinstance(call, nn.Module) else {}
    network = trace(Call(lambda layers, x: (layers["call"] if layers else call)(x * 2), **layers), torch.randn(IMAGE))
    assert network.mutates(list(network.graph.nodes)[-2]) is mutates


@pytest.mark.parametrize(
    ("layer", "shape", "name"),
    [
        (nn.Linear(4, 4), (2, 4), "linear"),
        (nn.Conv1d(4, 4, 1), (2, 4, 5), "conv1d"),
        (nn.Conv2d(4, 4, 1), IMAGE, "conv2d"),
        (nn.Conv3d(4, 4, 1), (2, 4, 3, 3, 3), "conv3d"),
        (nn.ConvTranspose1d(4, 4, 1), (2, 4, 5), "convtranspose1d"),
        (nn.ConvTranspose2d(4, 4, 1), IMAGE, "convtranspose2d"),
    ],
)
def test_affine_layers_and_functions_are_known(layer, shape, name):
    function = getattr(F, name.replace("transpose", "_transpose"))
    by_function = Call(lambda layers, x: function(x, layers["it"].weight, layers["it"].bias), it=layer)
    for model in (nn.Sequential(layer), by_function):
        network = trace(model, torch.randn(shape))
        assert [network.op(node) for node in network.graph.nodes if network.is_affine(node)] == [name]


def test_the_source_is_seen_through_what_only_reshapes():
    def forward(layers, x):
        return F.relu(layers["drop"](layers["conv"](x)[:, :, 1:-1].flatten(1)))

    network = trace(Call(forward, conv=nn.Conv2d(4, 4, 1), drop=nn.Dropout()), torch.randn(IMAGE))
    (relu,) = [node for node in network.graph.nodes if network.is_nonlinearity(node)]
    source = network.source(relu)
    assert source is not None
    assert (network.op(source), network.label(source)) == ("conv2d", "layers.conv")


def test_shapes_are_those_of_the_example():
    network = trace(nn.Sequential(nn.Conv2d(4, 6, 3), nn.Flatten()), torch.randn(IMAGE))
    assert [network.shape(node) for node in network.graph.nodes] == [(2, 4, 7, 7), (2, 6, 5, 5), (2, 150), (2, 150)]


def test_constants_are_found_and_evaluated():
    layer = nn.Linear(3, 3)
    network = trace(Call(lambda layers, x: x @ (layers["it"].weight.t() * 2), it=layer), torch.randn(2, 3))
    product = list(network.graph.nodes)[-2]
    found = network.constant(product.args[1])
    assert found is not None
    assert torch.equal(found, layer.weight.detach().t() * 2)
    assert network.constant(product) is None


def test_calls_of_a_shared_layer_are_counted():
    model = Call(lambda layers, x: layers["conv"](F.relu(layers["conv"](x))), conv=nn.Conv2d(4, 4, 1))
    network = trace(model, torch.randn(IMAGE))
    assert network.calls(network.root.get_submodule("layers.conv")) == 2


def test_new_names_step_aside_for_old_ones():
    network = trace(nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4))
    assert network.add_layer("0.norm", nn.ReLU()) == "0.norm"
    assert network.add_layer("0.norm", nn.ReLU()) == "0.norm_1"
    assert network.add_tensor("0.weight", torch.zeros(1)) == "0.weight_1"
