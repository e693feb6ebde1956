"""Test the view of a network: one name for every way to call an operation, and which call feeds which."""

import pytest
import torch
import torch.nn.functional as F
from support.networks import Call
from torch import nn

from batchnorm.graph.ops import NONLINEARITIES
from batchnorm.graph.trace import trace

IMAGE = (2, 4, 7, 7)


def find(network, op):
    return next(node for node in network.graph.nodes if network.op(node) == op)


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


def chunked(_layers, x):
    first, second = x.chunk(2, 1)
    return torch.cat([first.reshape_as(second), second, second], 1) + 1


def test_an_output_that_is_no_tensor_has_no_shape():
    network = trace(Call(chunked), torch.randn(IMAGE))
    chunk, half = (find(network, op) for op in ("chunk", "getitem"))
    assert [network.gives_tensor(node) for node in (chunk, half)] == [False, True]
    assert [network.gives_tuple_of_tensors(node) for node in (chunk, half)] == [True, False]
    assert not network.same_shape(chunk, half)
    with pytest.raises(TypeError, match="chunk gives tuple, which has no shape"):
        network.shape(chunk)


def test_same_shape_is_of_all():
    network = trace(Call(chunked), torch.randn(IMAGE))
    cat, add, half = (find(network, op) for op in ("cat", "add", "getitem"))
    assert network.same_shape(cat, add)
    assert not network.same_shape(cat, add, half)


def test_values_come_from_tensors_behind_tuples_and_not_from_shapes():
    network = trace(Call(chunked), torch.randn(IMAGE))
    (x,) = network.graph.find_nodes(op="placeholder")
    first, second = [node for node in network.graph.nodes if network.op(node) == "getitem"]
    reshaped, cat = find(network, "reshapeas"), find(network, "cat")
    assert network.data_inputs(first) == [x]
    assert network.data_inputs(reshaped) == [first]
    assert network.data_inputs(cat) == [reshaped, second]
    assert network.data_users(x) == [first, second]
    assert network.data_users(second) == [cat]


def test_an_argument_that_is_no_node_is_no_input():
    network = trace(Call(lambda _, x: 2 - x), torch.randn(IMAGE))
    sub = find(network, "sub")
    assert network.input_or_none(sub) is None
    assert network.input(sub, 1).op == "placeholder"
    with pytest.raises(TypeError, match="argument 0 of sub is no output of another call"):
        network.input(sub)


def test_the_call_is_kept_as_it_was_given_and_as_the_graph_takes_it():
    x = torch.randn(IMAGE)
    network = trace(TwoArguments(), {"x": x, "scale": 2.0})
    assert network.call == ((), {"x": x, "scale": 2.0})
    assert network.inputs == ((x,), {})


class TwoArguments(nn.Module):
    def forward(self, x, scale):
        return x * scale


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


def counted(network, layer):
    """Count the calls of a layer by a scan of the whole graph."""
    return sum(network.layer(node) is layer for node in network.graph.nodes)


def test_the_count_of_calls_follows_every_change_of_the_graph():
    layers = {"conv": nn.Conv2d(4, 4, 1), "relu": nn.ReLU()}
    model = Call(lambda layers, x: layers["conv"](layers["relu"](layers["conv"](layers["relu"](x)))), **layers)
    network = trace(model, torch.randn(IMAGE))
    conv, relu = (network.root.get_submodule(f"layers.{name}") for name in layers)
    calls = [node for node in network.graph.nodes if network.layer(node) is conv]
    own = network.own_layer(calls[0])
    assert own not in (None, conv)
    assert network.own_layer(calls[1]) is conv
    network.call_after(calls[1], "call_module", "layers.relu", (calls[1],))
    network.remove(find(network, "relu"), network.input(find(network, "relu")))
    assert [network.calls(layer) for layer in (conv, own, relu, nn.ReLU())] == [1, 1, 2, 0]
    assert [counted(network, layer) for layer in (conv, own, relu)] == [1, 1, 2]


def test_a_call_whose_layer_was_replaced_can_be_removed():
    network = trace(nn.Sequential(nn.ReLU(), nn.Flatten()), torch.randn(IMAGE))
    node = find(network, "relu")
    network.root.set_submodule("0", nn.Tanh())
    network.remove(node, network.input(node))
    assert [network.op(call) for call in network.graph.nodes if call.op == "call_module"] == ["flatten"]


@pytest.mark.parametrize(
    ("name", "linear", "transposed"),
    [("linear", True, False), ("conv2d", False, False), ("conv_transpose2d", False, True), ("transpose", False, False)],
)
def test_linear_and_transposed_convolutions_are_told_apart(name, linear, transposed):
    calls = {
        "linear": lambda x: F.linear(x, torch.ones(7, 7)),
        "conv2d": lambda x: F.conv2d(x, torch.ones(4, 4, 1, 1)),
        "conv_transpose2d": lambda x: F.conv_transpose2d(x, torch.ones(4, 4, 1, 1)),
        "transpose": lambda x: x.transpose(2, 3),
    }
    network = trace(Call(lambda _, x: calls[name](x)), torch.randn(IMAGE))
    node = find(network, name.replace("_", ""))
    assert (network.is_linear(node), network.is_transposed(node)) == (linear, transposed)


def test_new_names_step_aside_for_old_ones():
    network = trace(nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4))
    assert network.add_layer("0.norm", nn.ReLU()) == "0.norm"
    assert network.add_layer("0.norm", nn.ReLU()) == "0.norm_1"
    assert network.add_tensor("0.weight", torch.zeros(1)) == "0.weight_1"
