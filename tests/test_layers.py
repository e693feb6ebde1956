"""Test the layers against torch's, and where they improve on torch's."""

import copy
import io
import pickle
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize, prune

import batchnorm as bn

PAIRS = {
    "1d (N, C)": (bn.BatchNorm1d, nn.BatchNorm1d, (6, 4)),
    "1d (N, C, L)": (bn.BatchNorm1d, nn.BatchNorm1d, (6, 4, 5)),
    "2d": (bn.BatchNorm2d, nn.BatchNorm2d, (6, 4, 3, 5)),
    "3d": (bn.BatchNorm3d, nn.BatchNorm3d, (3, 4, 2, 3, 2)),
}
OPTIONS = [{}, {"affine": False}, {"track_running_stats": False}, {"momentum": None}, {"momentum": 0.3, "eps": 0.01}]


def pair(name, dtype=torch.float64, **options):
    """Our layer and torch's with the same random state, and the shape of their input."""
    ours_class, theirs_class, shape = PAIRS[name]
    ours, theirs = ours_class(4, dtype=dtype, **options), theirs_class(4, dtype=dtype, **options)
    generator = torch.Generator().manual_seed(0)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, generator=generator)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs, shape


def batches(shape, count, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return [(1 + 2 * torch.randn(shape, generator=generator)).to(dtype) for _ in range(count)]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", PAIRS)
def test_training_and_eval_agree_with_torch(name, options):
    ours, theirs, shape = pair(name, **options)
    for x in batches(shape, 3):
        torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    ours.eval()
    theirs.eval()
    (x,) = batches(shape, 1)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", PAIRS)
def test_gradients_and_double_backward_agree_with_torch(name, options, training):
    found = []
    for layer in pair(name, **options)[:2]:
        layer.train(training)
        x = batches(PAIRS[name][2], 1)[0].requires_grad_()
        inputs = [x, *layer.parameters()]
        first = torch.autograd.grad(layer(x).sin().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(torch.stack([g.square().sum() for g in first]).sum(), inputs)
        found.append((first, second))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("steps", [1, 2, 100])
def test_eval_output_after_some_steps_is_torchs(steps):
    # equinox's "batch" mode debiases a variance that starts at 1. That gives 102.6 after one step on a batch with 3.6.
    ours, theirs, shape = pair("2d")
    for x in batches(shape, steps):
        ours(x)
        theirs(x)
    ours.eval()
    theirs.eval()
    (x,) = batches(shape, 1)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "sigmoid"])
@pytest.mark.parametrize("name", PAIRS)
def test_activation_is_torchs_layer_then_torchs_activation(name, activation):
    ours, theirs, shape = pair(name)
    ours.activation = activation
    after = getattr(torch.nn.functional, activation)
    for training in (True, False):
        ours.train(training)
        theirs.train(training)
        (x,) = batches(shape, 1)
        torch.testing.assert_close(ours(x), after(theirs(x)))


def test_layers_are_torchs_layers():
    for ours, theirs, _ in PAIRS.values():
        assert issubclass(ours, theirs)


def test_state_dict_goes_both_ways():
    ours, theirs, shape = pair("2d")
    ours(batches(shape, 1)[0])
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(theirs.state_dict(), ours.state_dict(), rtol=0, atol=0)
    assert list(theirs.state_dict()) == list(ours.state_dict())


def test_statistics_can_be_switched_off_after_construction_as_in_torch():
    ours, theirs, shape = pair("2d")
    for layer in (ours, theirs):
        layer.track_running_stats = False
        layer(batches(shape, 1)[0])
        layer.eval()
    torch.testing.assert_close(ours(batches(shape, 1)[0]), theirs(batches(shape, 1)[0]))
    assert ours.num_batches_tracked == 0


def test_momentum_none_averages_all_batches_equally():
    layer = bn.BatchNorm1d(1, momentum=None, dtype=torch.float64)
    for value in (1.0, 2.0, 6.0):
        layer(torch.tensor([[value], [value + 2]]).double())
    assert layer.get_buffer("running_mean").item() == pytest.approx(4.0)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu", "sigmoid"])
def test_compile_fullgraph_agrees_with_eager(momentum, activation):
    torch.compiler.reset()
    eager = bn.BatchNorm2d(4, momentum=momentum, activation=activation, dtype=torch.float64)
    compiled = copy.deepcopy(eager)
    call = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    for x in batches((6, 4, 3, 5), 2):
        torch.testing.assert_close(call(x), eager(x))
    torch.testing.assert_close(compiled.state_dict(), eager.state_dict())


@pytest.mark.parametrize("training", [True, False])
def test_export(training):
    layer = bn.BatchNorm2d(4, activation="relu").train(training)
    x, y = batches((6, 4, 3, 5), 2, torch.float32)
    program = torch.export.export(copy.deepcopy(layer), (x,)).module()
    torch.testing.assert_close(program(y), layer(y))
    torch.testing.assert_close(dict(program.named_buffers())["running_mean"], layer.running_mean)


@pytest.mark.parametrize("activation", [None, "relu"])
def test_autocast_agrees_with_torch(activation):
    ours, theirs, shape = pair("2d", torch.float32)
    ours.activation = activation
    convolution = nn.Conv2d(4, 4, 1)
    (x,) = batches(shape, 1, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        z, wanted = ours(convolution(x)), theirs(convolution(x))
        wanted = wanted.relu() if activation else wanted
    assert z.dtype == wanted.dtype == torch.bfloat16
    torch.testing.assert_close(z, wanted)
    torch.testing.assert_close(ours.running_var, theirs.running_var)


def test_copies_are_whole_and_apart():
    layer = bn.BatchNorm1d(4, activation="leaky_relu", negative_slope=0.2)
    x, y = batches((6, 4), 2, torch.float32)
    layer(x)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)):
        before = copy.deepcopy(layer.state_dict())
        assert other(y).equal(copy.deepcopy(layer)(y))
        torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)


def test_vmap_over_an_ensemble_updates_each_members_statistics():
    members = [bn.BatchNorm1d(3) for _ in range(2)]
    parameters, buffers = torch.func.stack_module_state(members)
    xs = torch.stack(batches((8, 3), 2, torch.float32))

    def call(parameters, buffers, x):
        return torch.func.functional_call(members[0], (parameters, buffers), x)

    z = torch.vmap(call)(parameters, buffers, xs)
    for i, member in enumerate(members):
        torch.testing.assert_close(z[i], member(xs[i]))
        torch.testing.assert_close(buffers["running_var"][i], member.running_var)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_bad_batch_is_left_out_with_one_warning(bad, momentum):
    layer = bn.BatchNorm1d(2, momentum=momentum)
    good = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    layer(good)
    before = copy.deepcopy(layer.state_dict())
    with pytest.warns(RuntimeWarning, match=r"BatchNorm1d\(2.*not finite was left out") as caught:
        layer(good * bad)
    assert len(caught) == 1
    layer(good * bad)  # warnings are errors here: it warns once
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)


def test_a_bad_batch_is_left_out_of_a_compiled_layer():
    torch.compiler.reset()
    layer = bn.BatchNorm1d(2)
    torch.compile(layer, fullgraph=True, backend="aot_eager")(torch.full((4, 2), float("inf")))
    assert layer.get_buffer("running_mean").tolist() == [0, 0]
    assert layer.get_buffer("num_batches_tracked").item() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_modules_keep_exact_float32_statistics(dtype):
    layer = bn.BatchNorm1d(1)
    layer(torch.full((64, 1), 100.0) + torch.arange(64.0)[:, None] / 64)
    exact = layer.get_buffer("running_mean")
    network = nn.Sequential(layer).to(dtype)
    assert layer.get_buffer("running_mean").equal(exact)
    assert layer.get_buffer("running_mean").dtype == torch.float32
    assert layer.weight.dtype == dtype
    assert network(torch.randn(4, 1, dtype=dtype)).dtype == dtype


def test_bfloat16_running_mean_reaches_the_truth():
    # torch's stops at 96, because one part in 256 is too coarse for the last steps.
    layer = bn.BatchNorm1d(1).bfloat16()
    x = torch.tensor([[99.0], [101.0]], dtype=torch.bfloat16)
    for _ in range(200):
        layer(x)
    assert layer.get_buffer("running_mean").item() == pytest.approx(100, abs=1e-3)


@pytest.mark.parametrize("make", [
    lambda: bn.BatchNorm1d(2, dtype=torch.bfloat16),
    lambda: bn.BatchNorm1d(2).half().bfloat16(),
    lambda: nn.Sequential(bn.BatchNorm1d(2)).to("cpu", torch.float16)[0],
])  # fmt: skip
def test_every_way_to_low_precision_keeps_float32_statistics(make):
    assert {make().running_mean.dtype, make().running_var.dtype} == {torch.float32}


def test_loading_a_low_precision_checkpoint_by_assignment_keeps_float32_statistics():
    state = nn.BatchNorm1d(2).bfloat16().state_dict()
    layer = bn.BatchNorm1d(2)
    layer.load_state_dict(state, assign=True)
    assert layer.get_buffer("running_mean").dtype == torch.float32


def test_double_modules_have_double_statistics():
    assert bn.BatchNorm1d(2).double().get_buffer("running_mean").dtype == torch.float64


def test_meta_device_then_to_empty():
    layer = bn.BatchNorm1d(2, device="meta", dtype=torch.bfloat16).to_empty(device="cpu")
    layer.reset_parameters()
    assert layer(torch.randn(4, 2, dtype=torch.bfloat16)).isfinite().all()


def test_repr_names_the_activation():
    assert "activation='relu'" in repr(bn.BatchNorm1d(2, activation="relu"))
    assert "negative_slope=0.2" in repr(bn.BatchNorm1d(2, activation="leaky_relu", negative_slope=0.2))
    assert "activation" not in repr(bn.BatchNorm1d(2))


def test_wrong_dimensions_get_torchs_error():
    with pytest.raises(ValueError, match="expected 4D input"):
        bn.BatchNorm2d(2)(torch.zeros(2, 2))


def test_one_value_per_channel_is_fine_in_eval():
    assert bn.BatchNorm1d(2).eval()(torch.ones(1, 2)).shape == (1, 2)
    with pytest.raises(bn.BatchNormError, match="more than 1 value per channel"):
        bn.BatchNorm1d(2)(torch.ones(1, 2))


def test_an_empty_batch_changes_nothing_and_warns_of_nothing():
    layer = bn.BatchNorm1d(2)
    before = copy.deepcopy(layer.state_dict())
    assert layer(torch.empty(0, 2, 3)).shape == (0, 2, 3)
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)


def test_unknown_activation_is_refused_at_construction():
    name: Any = "tanh"
    with pytest.raises(bn.BatchNormError, match="got 'tanh'"):
        bn.BatchNorm1d(2, activation=name)


def test_torch_fx_takes_the_layer_as_a_leaf_as_torchs_own():
    network = nn.Sequential(nn.Conv2d(2, 4, 1), bn.BatchNorm2d(4, activation="relu")).eval()
    traced = torch.fx.symbolic_trace(network)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["0", "1"]
    (x,) = batches((3, 2, 4, 4), 1, torch.float32)
    assert traced(x).equal(network(x))


def test_torchs_converter_drops_the_activation_as_documented():
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(bn.BatchNorm2d(3, activation="relu"))
    assert type(converted) is nn.SyncBatchNorm
    assert "convert_sync_batchnorm" in (bn.BatchNorm2d.__doc__ or "")


def test_a_traced_layer_leaves_a_bad_batch_out():
    layer = bn.BatchNorm1d(2)
    good = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.trace is deprecated
        traced: Any = torch.jit.trace(layer, good, check_trace=False)
    before = copy.deepcopy(traced.state_dict())
    traced(good * float("inf"))
    torch.testing.assert_close(traced.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("training", [True, False])
def test_one_statistic_missing_is_refused(training):
    layer = bn.BatchNorm1d(2).train(training)
    layer.running_var = None
    with pytest.raises(bn.BatchNormError, match="got only running_mean"):
        layer(torch.randn(4, 2))


def test_wrong_channels_get_torchs_error():
    with pytest.raises(RuntimeError, match="running_mean should contain 3 elements not 4"):
        bn.BatchNorm1d(4, affine=False)(torch.randn(2, 3))


@pytest.mark.parametrize("change", ["prune", "parametrize"])
def test_a_weight_that_is_no_parameter_any_more_counts(change):
    layer, x = bn.BatchNorm2d(3), torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    plain = layer(x)
    if change == "prune":
        prune.custom_from_mask(layer, "weight", torch.tensor([1.0, 0.0, 1.0]))
        wanted = plain * torch.tensor([1.0, 0.0, 1.0])[:, None, None]
    else:
        parametrize.register_parametrization(layer, "weight", nn.Softplus())
        wanted = plain * F.softplus(torch.tensor(1.0))
    # Tolerance: the product is rounded at another place.
    torch.testing.assert_close(layer(x), wanted, rtol=1e-6, atol=1e-6)


def test_buffers_that_are_no_buffers_any_more_count():
    parametrized, plain, uncounted = (bn.BatchNorm2d(3) for _ in range(3))
    parametrize.register_parametrization(parametrized, "running_mean", nn.Identity())
    mean = plain.get_buffer("running_mean")
    del plain.running_mean
    plain.running_mean = mean
    del uncounted.num_batches_tracked
    uncounted.num_batches_tracked = None
    x, wanted = torch.randn(4, 3, 5, 5), bn.BatchNorm2d(3)
    z = wanted(x)
    assert torch.equal(plain(x), z)
    assert torch.equal(uncounted(x), z)
    torch.testing.assert_close(parametrized.eval()(x), x / (1 + 1e-5) ** 0.5)
    assert torch.equal(mean, wanted.get_buffer("running_mean"))
    assert torch.equal(uncounted.get_buffer("running_mean"), wanted.get_buffer("running_mean"))


def test_a_parametrized_layer_compiles_whole():
    layer, x = bn.BatchNorm2d(3).eval(), torch.randn(4, 3, 5, 5)
    parametrize.register_parametrization(layer, "weight", nn.Softplus())
    wanted = layer(x)
    torch.testing.assert_close(torch.compile(layer, backend="eager", fullgraph=True)(x), wanted)
