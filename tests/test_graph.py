"""The view of a network: one name for every way to call a thing, what feeds what, any control flow on shapes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from networks import Call
from torch import nn

import batchnorm as bn
from batchnorm.graph import NONLINEARITIES, TrainingFlag, largest_error, trace

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


class Untraceable(nn.Module):
    def forward(self, x):
        return x if float(x.sum()) == float("inf") else x * 2


def test_a_module_that_cannot_be_traced_stays_whole():
    network = trace(nn.Sequential(nn.Linear(4, 4), Untraceable(), nn.BatchNorm1d(4)), torch.randn(3, 4))
    kinds = [type(network.layer(node)) for node in network.graph.nodes if node.op == "call_module"]
    assert kinds == [nn.Linear, Untraceable, nn.BatchNorm1d]


class Flow(nn.Module):
    """Python decides on a shape, in a module that holds a batch normalization."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(x) if x.shape[-1] > 3 else x


def test_control_flow_on_shapes_falls_back_to_export_with_a_free_batch():
    network = trace(Flow(), torch.randn(1, 4, 7, 7))
    assert [network.op(node) for node in network.graph.nodes if network.is_batch_norm(node)] == ["batchnorm"]
    assert network.as_module()(torch.randn(5, 4, 7, 7)).shape == (5, 4, 7, 7)


def test_control_flow_on_values_around_a_batch_norm_is_refused_with_both_reasons():
    class Values(Flow):
        def forward(self, x):
            return self.norm(x) if float(x.sum()) > 0 else x

    with pytest.raises(
        bn.BatchNormError, match=r"Values cannot be traced\. Symbolic tracing says: .*torch\.export says"
    ):
        trace(Values(), torch.randn(IMAGE))


def test_a_missing_argument_keeps_its_default():
    class Optional(nn.Module):
        def forward(self, x, mask=None):
            return x if mask is None else x * mask

    x = torch.randn(2, 3)
    assert torch.equal(trace(Optional(), x).as_module()(x), x)
    assert torch.equal(trace(Optional(), (x, 2 * x)).as_module()(x, 2 * x), 2 * x * x)


def test_eval_graphs_open_our_own_layers_and_subclasses():
    model = nn.Sequential(nn.Conv2d(4, 4, 1), bn.BatchNorm2d(4, activation="leaky_relu", negative_slope=0.3))
    assert ops(model, torch.randn(IMAGE)) == ["conv2d", "batchnorm", "leakyrelu"]


# Graphs that will be trained


def test_the_training_mode_is_read_when_the_graph_runs():
    model = Call(
        lambda layers, x: F.dropout(x, 0.5, training=layers.training) * layers["one"].weight, one=nn.Linear(3, 3)
    )
    x = torch.ones(3, 3)
    module = trace(model, x, trainable=True).as_module()
    assert sum(isinstance(layer, TrainingFlag) for layer in module.modules()) == 1
    module.eval()
    assert torch.equal(module(x), model.eval()(x))
    module.train()
    torch.manual_seed(0)
    dropped = module(x)
    torch.manual_seed(0)
    assert torch.equal(dropped, model.train()(x))
    assert not torch.equal(dropped, model.eval()(x))


def test_the_training_mode_is_read_in_a_copy_too():
    model = Call(lambda layers, x: F.dropout(x, 0.5, training=layers.training))
    module = copy.deepcopy(trace(model, torch.ones(9, 9), trainable=True).as_module()).eval()
    assert torch.equal(module(torch.ones(9, 9)), torch.ones(9, 9))


def test_a_trainable_graph_owns_all_that_the_model_owned_in_its_order():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.auxiliary, self.norm, self.linear = nn.Linear(2, 2), nn.BatchNorm1d(4), nn.Linear(4, 4)
            self.register_buffer("scratch", torch.zeros(3), persistent=False)

        def forward(self, x):
            return self.norm(self.linear(x))

    model = Unused()
    model.norm.eval()
    module = trace(model, torch.randn(3, 4), trainable=True).as_module()
    assert list(module.state_dict()) == list(model.state_dict())
    assert [name for name, _ in module.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert module.training
    assert not module.get_submodule("norm").training
    assert int(module.state_dict()["norm.num_batches_tracked"]) == 0  # tracing ran no training step


def test_branches_on_the_training_mode_stay_whole_in_modules_without_batch_norm():
    class Path(nn.Module):
        def forward(self, x):
            return x * 3 if self.training else x

    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), Path())
    module = trace(model, torch.randn(3, 4), trainable=True).as_module()
    x = torch.randn(3, 4)
    module.train()
    torch.testing.assert_close(module(x), copy.deepcopy(model).train()(x))
    module.eval()
    assert model.training


def test_a_network_that_is_another_in_training_is_refused():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x):
            return self.norm(x) if self.training else 2 * self.norm(x)

    with pytest.raises(bn.BatchNormError, match="one thing in training and another in eval"):
        trace(Two(), torch.randn(3, 4), trainable=True)


@pytest.mark.parametrize(
    ("got", "wanted", "error"),
    [
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]), 0.5),
        ({"a": torch.ones(2)}, {"a": torch.ones(2)}, 0.0),
        (torch.tensor([float("nan"), 1.0]), torch.tensor([float("nan"), 1.0]), 0.0),
        (torch.tensor([float("nan"), 1.0]), torch.tensor([0.0, 1.0]), float("inf")),
        (torch.ones(2), torch.ones(3), float("inf")),
        ((torch.ones(1),), (torch.ones(1), torch.ones(1)), float("inf")),
    ],
)
def test_errors_are_relative_to_the_largest_output(got, wanted, error):
    assert largest_error(got, wanted) == error
