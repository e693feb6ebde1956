"""Test tracing: control flow on shapes, every way to call a model, and graphs that train as the model does."""

import copy
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from support.networks import Call
from torch import nn

import batchnorm as bn
from batchnorm.graph.compare import largest_error, run
from batchnorm.graph.symbolic import TrainingFlag
from batchnorm.graph.trace import trace

IMAGE = (2, 4, 7, 7)


class Untraceable(nn.Module):
    def forward(self, x):
        return x if float(x.sum()) == float("inf") else x * 2


def test_a_module_that_cannot_be_traced_stays_whole():
    network = trace(nn.Sequential(nn.Linear(4, 4), Untraceable(), nn.BatchNorm1d(4)), torch.randn(3, 4))
    kinds = [type(network.layer(node)) for node in network.graph.nodes if node.op == "call_module"]
    assert kinds == [nn.Linear, Untraceable, nn.BatchNorm1d]


class Flow(nn.Module):
    """A module with a batch normalization, in which Python decides on a shape."""

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
    network = trace(model, torch.randn(IMAGE))
    calls = [network.op(node) for node in network.graph.nodes if node.op.startswith("call")]
    assert calls == ["conv2d", "batchnorm", "leakyrelu"]


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
    assert int(module.state_dict()["norm.num_batches_tracked"]) == 0  # tracing must not run a training step


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


class Sized(nn.Module):
    """A network in which Python decides on `condition` of a batch normalization's output."""

    def __init__(self, condition):
        super().__init__()
        self.conv, self.norm, self.condition = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), condition

    def forward(self, x):
        y = self.norm(self.conv(x)).relu()
        return F.interpolate(y, size=3) if self.condition(y) else 2 * y


@pytest.mark.parametrize("size", [5, 7])
def test_sizes_of_the_example_decide_in_a_graph_that_trains(size):
    torch.manual_seed(0)
    model, x = Sized(lambda y: y.shape[2] != 3 and y.size(-1) // 2 > 0), torch.randn(2, 4, size, size)
    module = trace(model, x, trainable=True).as_module()
    more = torch.randn(5, 4, size, size)
    torch.testing.assert_close(module(more), model(more))
    assert int(module.get_buffer("norm.num_batches_tracked")) == 1  # deciding must not run a training step


@pytest.mark.parametrize(
    ("condition", "reason"),
    [
        (lambda y: y.sum() > 0, r"its control flow depends on values \(it is a tensor\)"),
        (lambda y: y.sum().item() > 0, r"its control flow depends on values \(.*meta tensors"),
        (lambda y: y.shape[0] == 2, "one thing in training and another in eval|another structure in training"),
    ],
    ids=["tensor", "number", "batch"],
)
def test_what_the_example_cannot_decide_is_refused(condition, reason):
    with pytest.raises(bn.BatchNormError, match=f"Sized cannot be traced for training: .*({reason})"):
        trace(Sized(condition), torch.randn(IMAGE), trainable=True)


@pytest.mark.parametrize("trainable", [False, True])
def test_inputs_that_the_network_does_not_run_on_are_refused(trainable):
    with pytest.raises(
        bn.BatchNormError,
        match=r"^Sequential does not run on example_inputs of \(3, 5\) torch.float32 on cpu: "
        r"mat1 and mat2 .*3x5 and 4x4\)\. Give a shape, type and device that it takes",
    ):
        trace(nn.Sequential(nn.Linear(4, 4)), torch.randn(3, 5), trainable=trainable)


@pytest.mark.parametrize("trainable", [False, True])
def test_an_output_without_a_finite_value_is_refused_since_nothing_can_be_compared(trainable):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    nn.init.constant_(model.get_parameter("0.weight"), float("nan"))
    with pytest.raises(bn.BatchNormError, match=r"^Sequential gives no finite value for the example_inputs; look for"):
        trace(model, torch.randn(3, 4), trainable=trainable)


@pytest.mark.parametrize("transform", [bn.insert, bn.fuse])
def test_an_auxiliary_head_that_the_example_is_too_small_for_is_named(transform):
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.head = nn.BatchNorm2d(4), nn.Conv2d(4, 2, 9)

        def forward(self, x):
            y = self.norm(x)
            return (y, self.head(y)) if self.training else y

    with pytest.raises(
        bn.BatchNormError,
        match=r"forward in training does not run on \(2, 4, 7, 7\).*: Calculated padded input size per channel.*"
        r"Make the network without them \(torchvision: aux_logits=False\)",
    ):
        transform(Auxiliary(), torch.randn(IMAGE))


def test_auxiliary_outputs_in_training_are_named():
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x):
            y = self.norm(x)
            return (y, 2 * y) if self.training else y

    with pytest.raises(bn.BatchNormError, match=r"Auxiliary outputs\? Make the network without them"):
        trace(Auxiliary(), torch.randn(3, 4), trainable=True)


# Ways to call


class AnyArguments(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, first, *more, scale=1.0, **named):
        return {"y": scale * self.norm(first + sum(more)), **{key: value - 1 for key, value in named.items()}}


@pytest.mark.parametrize("trainable", [False, True])
def test_variable_and_named_arguments(trainable):
    x = [torch.randn(3, 4) for _ in range(4)]
    for example in ((x[0], x[1], x[2]), {"first": x[0], "mask": x[3]}, {"first": x[0], "scale": 2.0}):
        network, model = trace(AnyArguments(), example, trainable=trainable), AnyArguments().eval()
        call = ((), example) if isinstance(example, dict) else (example, {})
        assert largest_error(run(network.as_module().eval(), network.inputs), run(model, call)) < 1e-6


@pytest.mark.parametrize("trainable", [False, True])
def test_a_list_of_tensors(trainable):
    model, example = (
        Call(lambda layers, xs: [layers["norm"](x) for x in xs], norm=nn.BatchNorm1d(4)).eval(),
        ([torch.randn(3, 4), torch.randn(5, 4)],),
    )
    network = trace(model, example, trainable=trainable)
    assert sum(map(network.is_batch_norm, network.graph.nodes)) == 2
    assert largest_error(run(network.as_module(), (example, {})), run(model, (example, {}))) < 1e-6


def add_one(_module: nn.Module, _args: Any, output: Any) -> Any:
    return output + 1


@pytest.mark.parametrize("trainable", [False, True])
def test_hooks_around_the_network_are_kept(trainable):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    model.register_forward_pre_hook(lambda _, args: (2 * args[0],))
    model.register_forward_hook(add_one)
    model.register_forward_hook(lambda _, args, _kwargs, output: output * args[0].mean(), with_kwargs=True)
    x = torch.randn(3, 4)
    module = trace(model, x, trainable=trainable).as_module().eval()
    torch.testing.assert_close(module(x), model.eval()(x))


@pytest.mark.parametrize(
    ("wrapped", "inside"),
    [
        (lambda model: torch.compile(model, backend="eager"), "_orig_mod"),
        (nn.DataParallel, "module"),
    ],
    ids=["compiled", "parallel"],
)
def test_a_wrapper_is_refused_by_name(wrapped, inside):
    with pytest.raises(bn.BatchNormError, match=rf"wraps the network; give the network itself, model\.{inside}$"):
        trace(wrapped(nn.Sequential(nn.Linear(4, 4))), torch.randn(3, 4))


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, bn.BatchNorm2d])
def test_one_layer_alone_is_no_network_to_train(kind):
    with pytest.raises(bn.BatchNormError, match=r"one layer, BatchNorm2d\. Put it into one: torch\.nn\.Sequential"):
        trace(kind(4), torch.randn(IMAGE), trainable=True)


@pytest.mark.parametrize("trainable", [False, True])
def test_a_compiled_part_is_seen_through(trainable):
    inside = nn.Sequential(nn.BatchNorm1d(4), nn.ReLU())
    compiled = cast(nn.Module, torch.compile(inside, backend="eager"))
    model, x = nn.Sequential(nn.Linear(4, 4), compiled).eval(), torch.randn(3, 4)
    network = trace(model, x, trainable=trainable)
    assert sum(map(network.is_batch_norm, network.graph.nodes)) == 1
    torch.testing.assert_close(network.as_module()(x), inside(model[0](x)))


# torch.jit warns that it is deprecated. Some networks still use it.
scripts = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")


@scripts
@pytest.mark.parametrize("trainable", [False, True])
def test_a_scripted_part_without_batch_norm_stays_whole(trainable):
    model, x = nn.Sequential(nn.BatchNorm1d(4), torch.jit.script(nn.Sequential(nn.ReLU()))).eval(), torch.randn(3, 4)
    network = trace(model, x, trainable=trainable)
    assert [str(node.target) for node in network.graph.nodes] == ["input", "0", "1", "output"]
    torch.testing.assert_close(network.as_module()(x), model(x))


@scripts
def test_a_scripted_batch_norm_is_refused_by_name():
    model = nn.Sequential(nn.Linear(4, 4), torch.jit.script(nn.Sequential(nn.BatchNorm1d(4))))
    with pytest.raises(bn.BatchNormError, match=r"'1\.0' is a batch normalization in TorchScript"):
        trace(model, torch.randn(3, 4))


# Tensors that are neither parameters nor buffers


def constants(layers, x):
    return layers["norm"](x) * torch.tensor([1.0, 2.0, 3.0, 4.0])


class PlainTensor(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.scale = nn.BatchNorm1d(4), torch.arange(4.0)

    def forward(self, x):
        return self.norm(x) * self.scale


@pytest.mark.parametrize("make", [lambda: Call(constants, norm=nn.BatchNorm1d(4)), PlainTensor])
def test_constant_tensors_of_a_trainable_graph_stay_out_of_its_state(make):
    model, x = make(), torch.randn(3, 4)
    module = trace(model, x, trainable=True).as_module()
    assert list(module.state_dict()) == list(model.state_dict())
    torch.testing.assert_close(module(x), model(x))
    torch.testing.assert_close(copy.deepcopy(module).double()(x.double()), model.double()(x.double()))


def test_a_frozen_layer_remembers_the_mode_that_was_asked_for():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train()
    bn.freeze(model)
    module = trace(model, torch.randn(3, 4), trainable=True).as_module()
    bn.unfreeze(module)
    assert module.get_submodule("1").training


@pytest.mark.parametrize("transform", [bn.fold, bn.fuse, bn.insert])
@pytest.mark.parametrize("example", ["abc", (1, 3, 8, 8), torch.Size([1, 3]), None, {"input": 3}])
def test_example_inputs_without_a_tensor_say_what_to_give(transform, example):
    with pytest.raises(bn.BatchNormError, match=r"hold no tensor; got .*Wanted a tensor.*make one: torch\.randn\(1, 3"):
        transform(nn.Sequential(nn.Conv2d(3, 3, 1)), example)
