"""Test masks against the numpy oracle on the packed values."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import reference
from torch import nn
from torch.testing import assert_close

import batchnorm as bn

# float64: sums in another order. float32: some roundings of values near 1, more in sums over the values.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}
LAYERS = {2: bn.BatchNorm1d, 3: bn.BatchNorm1d, 4: bn.BatchNorm2d, 5: bn.BatchNorm3d}


def rows(t, mask):
    """Return the values of t (N, C, ...) that count, (M, C), in numpy."""
    return np.moveaxis(t.detach().double().numpy(), 1, -1)[mask.numpy()]


def check_step(layer, x, counted, dz, residual=None, **given):
    """Compare a training step of the layer with the oracle on packed values. NaN stands where nothing counts."""
    channel = counted.unsqueeze(1)
    x, dz, *residuals = (t.masked_fill(~channel, torch.nan) for t in (x, dz, residual) if t is not None)
    inputs = [t.requires_grad_() for t in (x, *residuals)]
    z = layer(*inputs, **given)
    tolerance = TOLERANCE[x.dtype]
    added = rows(residuals[0], counted) if residuals else 0.0
    weight, bias = (p.detach().double().numpy() for p in (layer.weight, layer.bias))
    arguments = (rows(x, counted), weight, bias, layer.eps, layer.activation)
    want = reference.forward(*arguments, residual=added)
    np.testing.assert_allclose(rows(z, counted), want, rtol=tolerance, atol=tolerance)
    assert (z.masked_select(~channel.expand_as(z)) == 0).all()
    found = torch.autograd.grad(z, (*inputs, layer.weight, layer.bias), dz)
    dx, dweight, dbias, dresidual = reference.backward(rows(dz, counted), *arguments, residual=added)
    expected = [dx, *([dresidual] if residuals else []), dweight, dbias]
    for got, exact in zip(found, expected, strict=True):
        if got.dim() > 1:
            assert (got.masked_select(~channel.expand_as(got)) == 0).all()
            got = torch.from_numpy(rows(got, counted))
        np.testing.assert_allclose(
            got.double().numpy(), exact, rtol=tolerance, atol=tolerance * int(counted.sum()) ** 0.5
        )
    mean, var = reference.population(rows(x, counted))
    momentum = layer.momentum
    assert_close(layer.running_mean.double().numpy(), momentum * mean, rtol=1e-5, atol=1e-6)
    assert_close(layer.running_var.double().numpy(), 1 - momentum + momentum * var, rtol=1e-5, atol=1e-6)
    assert layer.num_batches_tracked == 1


def tensors(shape, dtype, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype) for _ in range(3)]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("activation", [None, "relu", "silu"])
@pytest.mark.parametrize("added", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("shape", [(9, 5), (4, 5, 7), (3, 5, 4, 6), (2, 3, 2, 4, 3)], ids=str)
def test_a_step_is_that_of_the_packed_values(shape, added, activation, dtype):
    x, residual, dz = tensors(shape, dtype)
    mask = torch.rand((shape[0], *shape[2:]), generator=torch.Generator().manual_seed(1)) < 0.6
    layer = LAYERS[len(shape)](shape[1], activation=activation, dtype=dtype)
    check_step(layer, x, mask, dz, residual if added else None, mask=mask)


@given(st.data())
def test_any_mask(data):
    n, length = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 6)))
    mask = torch.tensor(
        data.draw(st.lists(st.lists(st.booleans(), min_size=length, max_size=length), min_size=n, max_size=n))
    )
    if mask.sum() < 2:
        return
    x, _, dz = tensors((n, 3, length), torch.float64)
    check_step(bn.BatchNorm1d(3, dtype=torch.float64), x, mask, dz, mask=mask)


@pytest.mark.parametrize("given_as", ["lengths", "examples", "broadcast", "channels_last"])
def test_forms_of_a_mask(given_as):
    x, _, dz = tensors((4, 3, 5, 6), torch.float64)
    if given_as == "lengths":
        x, dz = x[:, :, 0], dz[:, :, 0]
        lengths = torch.tensor([6, 0, 3, 1])
        mask, named = torch.arange(6) < lengths[:, None], {"lengths": lengths}
    elif given_as == "examples":
        mask = torch.tensor([True, False, True, True])
        named = {"mask": mask}
        mask = mask[:, None, None].expand(4, 5, 6)
    else:
        mask = torch.rand(4, 1, 6) < 0.5
        named, mask = {"mask": mask}, mask.expand(4, 5, 6)
    layer = LAYERS[x.dim()](3, dtype=torch.float64)
    if given_as == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
        assert layer(x, **named).is_contiguous(memory_format=torch.channels_last)
        layer = LAYERS[x.dim()](3, dtype=torch.float64)
    check_step(layer, x, mask, dz, **named)


def test_in_eval_the_running_statistics_normalize_and_padding_has_no_gradient():
    layer = bn.BatchNorm1d(3).eval()
    x = torch.randn(2, 3, 4)
    x[1, :, 2:] = torch.nan
    z = layer(x.requires_grad_(), lengths=torch.tensor([4, 2]))
    z.sum().backward()
    assert (z[1, :, 2:] == 0).all()
    assert_close(z[0], (x[0] / (1 + layer.eps) ** 0.5).detach())
    assert x.grad is not None
    assert torch.isfinite(layer.weight.grad).all()  # pyright: ignore[reportArgumentType]
    assert (x.grad[1, :, 2:] == 0).all()


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("kind", [bn.BatchNorm1d, nn.BatchNorm1d, nn.SyncBatchNorm])
def test_a_batch_without_a_value_that_counts_passes_zeros_and_is_not_counted(kind, momentum):
    layer, x = kind(3, momentum=momentum), torch.randn(2, 3, 4)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with bn.masked(nn.Sequential(layer), lengths=torch.tensor([0, 0])):
        z = layer(x)
    assert (z == 0).all()
    z.sum().backward()
    assert_close(dict(layer.state_dict()), before, rtol=0, atol=0)
    with bn.masked(nn.Sequential(layer), lengths=torch.tensor([4, 4])):
        layer(x)
    assert_close(layer.running_mean, (momentum or 1.0) * x.mean((0, 2)))
    assert layer.num_batches_tracked == 1


def test_one_value_that_counts_is_refused():
    with pytest.raises(bn.BatchNormError, match=r"more than 1 value per channel.*\(1, 3\)"):
        bn.BatchNorm1d(3)(torch.randn(2, 3, 4), lengths=torch.tensor([1, 0]))


WRONG = {
    "both": ({"mask": torch.ones(2, 4, dtype=torch.bool), "lengths": torch.tensor([1, 2])}, "got both"),
    "float mask": ({"mask": torch.ones(2, 4)}, r"mask must be a bool tensor.*float32"),
    "shape": ({"mask": torch.ones(2, 5, dtype=torch.bool)}, r"\(2, 5\) does not fit.*\(2, 3, 4\)"),
    "axes": ({"mask": torch.ones(2, 3, 4, dtype=torch.bool)}, "does not fit"),
    "too long": ({"lengths": torch.tensor([5, 2])}, r"from 0 to 4.*\[5, 2\].*give mask"),
    "negative": ({"lengths": torch.tensor([-1, 2])}, "from 0 to 4"),
    "float lengths": ({"lengths": torch.tensor([1.0, 2.0])}, "must be 2 integers"),
    "count of lengths": ({"lengths": torch.tensor([1])}, "must be 2 integers"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_masks(case):
    named, match = WRONG[case]
    with pytest.raises(bn.BatchNormError, match=match):
        bn.BatchNorm1d(3)(torch.randn(2, 3, 4), **named)


def test_lengths_are_for_sequences():
    with pytest.raises(bn.BatchNormError, match=r"lengths are for an input of \(N, C, L\)"):
        bn.BatchNorm2d(3)(torch.randn(2, 3, 4, 4), lengths=torch.tensor([1, 2]))


def speech(kind) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(4, 6, 3, padding=1), kind(6), nn.ReLU(), nn.Conv1d(6, 6, 3, stride=2, padding=1), kind(6), nn.ReLU()
    )


@pytest.mark.parametrize("kind", [bn.BatchNorm1d, nn.BatchNorm1d])
def test_a_network_behind_a_stride_takes_the_ceiling_of_the_length(kind):
    model, lengths = speech(kind), torch.tensor([9, 4, 1])
    x = torch.randn(3, 4, 9)
    seen = []
    model[4].register_forward_hook(lambda _m, args, z: seen.append((args[0], z)))
    with bn.masked(model, lengths=lengths):
        model(x)
    inside, z = seen[0]
    halves = [5, 3, 1]  # ceil(length * 5 / 9)
    mask = torch.arange(5) < torch.tensor(halves)[:, None]
    mean, var = reference.population(rows(inside, mask))
    assert_close(model[4].running_mean, torch.from_numpy(0.1 * mean).float())
    assert_close(model[4].running_var, torch.from_numpy(0.9 + 0.1 * var).float())
    assert (z.masked_select(~mask[:, None].expand_as(z)) == 0).all()


# The kernels sum float32 in an order that depends on the padding: roundings of values near 1. float64 is packed.
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 2e-7), (torch.float64, 0.0)], ids=str)
@pytest.mark.parametrize("kind", [bn.BatchNorm1d, nn.BatchNorm1d])
def test_statistics_do_not_depend_on_the_padding(kind, dtype, atol):
    lengths = torch.tensor([8, 5])
    x = torch.randn(2, 4, 8, dtype=dtype)
    states = []
    for padding in (0, 8):
        model = nn.Sequential(kind(4), nn.ReLU(), kind(4)).to(dtype)
        with bn.masked(model, lengths=lengths):
            model(torch.nn.functional.pad(x, (0, padding), value=torch.nan))
        states.append(dict(model.state_dict()))
    assert_close(states[0], states[1], rtol=0, atol=atol)


def test_after_the_block_the_layers_are_ordinary():
    model = nn.Sequential(nn.BatchNorm1d(3), bn.BatchNorm1d(3))
    with pytest.raises(RuntimeError, match="stop"), bn.masked(model, mask=torch.tensor([True, False])):
        raise RuntimeError("stop")
    assert "forward" not in vars(model[0])
    assert model[1]._special is None
    assert not model._forward_pre_hooks


def test_subclasses_keep_their_activation():
    layer = timm.layers.BatchNormAct2d(3, act_layer=nn.SiLU)  # pyright: ignore[reportPrivateImportUsage]
    x, mask = torch.randn(4, 3, 5, 5), torch.tensor([True, True, False, True])
    with bn.masked(nn.Sequential(layer), mask=mask):
        z = layer(x)
    want = bn.BatchNorm2d(3, activation="silu")(x[mask])
    assert_close(z[mask], want)


def test_a_layer_without_places_counts_examples_with_a_value():
    model = nn.Sequential(bn.BatchNorm1d(3), nn.AdaptiveAvgPool1d(1), nn.Flatten(), bn.BatchNorm1d(3))
    seen = []
    model[3].register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    with bn.masked(model, lengths=torch.tensor([4, 0, 2])):
        z = model(torch.randn(3, 3, 4))
    assert_close(model[3].running_mean, 0.1 * seen[0][[0, 2]].mean(0))
    assert (z[1] == 0).all()


@pytest.mark.parametrize("x", [torch.randn(2, 3, 4, 4), torch.randn(4, 3, 4)], ids=["axes", "examples"])
def test_a_shape_that_fits_nothing_names_the_layer(x):
    kind = bn.BatchNorm2d if x.dim() == 4 else bn.BatchNorm1d
    model = nn.Sequential(nn.Identity(), kind(3))
    with (
        bn.masked(model, mask=torch.ones(2, 4, dtype=torch.bool)),
        pytest.raises(bn.BatchNormError, match=r"\(2, 4\) does not fit the input of '1'"),
    ):
        model(x)


class Downsampled(nn.Module):
    """A network whose input is anything that `take` finds a tensor in."""

    def __init__(self, take):
        super().__init__()
        self.take, self.bn = take, bn.BatchNorm1d(3, momentum=1.0)

    def forward(self, *args, **kwargs):
        return self.bn(self.take(*args, **kwargs)[:, :, ::2])


X = torch.randn(3, 3, 5, generator=torch.Generator().manual_seed(0))
CALLS = {
    "keyword": lambda net: net(x=X),
    "dictionary": lambda net: net({"lengths": torch.tensor([5, 2, 4]), "x": X}),
    "pair": lambda net: net((X, torch.tensor([5, 2, 4]))),
    "behind numbers": lambda net: net(torch.tensor([5, 2, 4]), [X]),
}


def found_in(*args, **kwargs):
    if isinstance(args[0] if args else kwargs, dict):
        return (args[0] if args else kwargs)["x"]
    return args[0][0] if isinstance(args[0], tuple) else args[1][0]


@pytest.mark.parametrize("call", CALLS)
def test_the_length_is_that_of_the_first_tensor_of_two_axes_wherever_it_is(call):
    net = Downsampled(found_in)
    with bn.masked(net, lengths=torch.tensor([5, 2, 4])):
        CALLS[call](net)
    counted = torch.cat([x[:, ::2][:, :n] for x, n in zip(X, (3, 2, 3), strict=True)], 1)  # ceil(length * 3 / 5)
    assert_close(net.bn.running_mean, counted.mean(1))


@pytest.mark.parametrize("kind", [bn.BatchNorm2d, nn.BatchNorm2d])
def test_lengths_of_feature_maps_count_along_the_last_axis(kind):
    layer = kind(3, momentum=1.0)
    x, lengths = torch.randn(3, 3, 4, 6), [6, 2, 3]
    model = nn.Sequential(layer)
    with bn.masked(model, lengths=torch.tensor(lengths)):
        z = model(x)
    counted = torch.cat([m[:, :, :n].flatten(1) for m, n in zip(x, lengths, strict=True)], 1)
    assert_close(layer.running_mean, counted.mean(1))
    assert (z[1, :, :, 2:] == 0).all()
    assert (z[1, :, :, :2] != 0).all()


def test_one_mask_for_all_examples():
    layer, x = bn.BatchNorm2d(3), torch.randn(4, 3, 5, 6)
    mask = torch.rand(1, 1, 6) < 0.5
    with bn.masked(nn.Sequential(layer), mask=mask):
        z = layer(x)
    assert_close(z, bn.BatchNorm2d(3)(x, mask=mask), rtol=0, atol=0)


def test_lengths_that_do_not_fit_a_layer_called_by_itself_name_it():
    model = nn.Sequential(nn.Identity(), bn.BatchNorm1d(3))
    with (
        bn.masked(model, lengths=torch.tensor([9, 2])),
        pytest.raises(bn.BatchNormError, match=r"layer '1': lengths must be from 0 to 4"),
    ):
        model[1](torch.randn(2, 3, 4))


def test_masked_wants_one_of_two_and_a_layer():
    model = nn.Sequential(bn.BatchNorm1d(3))
    with pytest.raises(bn.BatchNormError, match="got neither"), bn.masked(model):
        pass
    with pytest.raises(bn.BatchNormError, match=r"Use mask\.bool"), bn.masked(model, mask=torch.ones(2)):
        pass
    with (
        pytest.raises(bn.BatchNormError, match="no BatchNorm layer: nothing to mask"),
        bn.masked(nn.ReLU(), mask=torch.ones(2) > 0),
    ):
        pass


def test_far_from_zero_with_most_values_padding():
    rng = torch.Generator().manual_seed(0)
    x = (torch.randn(4, 3, 500, generator=rng, dtype=torch.float64) * 1e-2 + 1e4).float()
    lengths = torch.tensor([500, 3, 2, 1])
    layer = bn.BatchNorm1d(3)
    z = layer(x, lengths=lengths)
    packed = rows(x, torch.arange(500) < lengths[:, None])
    want = reference.forward(packed, np.ones(3), np.zeros(3))
    # x itself is exact here. Its deviation from a float32 mean has the rounding of 1e4, 1e-3 / 2, but double has not.
    np.testing.assert_allclose(rows(z, torch.arange(500) < lengths[:, None]), want, rtol=0, atol=1e-3)


def test_bfloat16_and_autocast():
    layer = bn.BatchNorm2d(3, activation="relu")
    x = torch.randn(4, 3, 5, 6).bfloat16()
    mask = torch.rand(4, 5, 6) < 0.6
    with torch.autocast("cpu", torch.bfloat16):
        z = layer(x, mask=mask)
    assert z.dtype == torch.bfloat16
    want = reference.forward(rows(x, mask), np.ones(3), np.zeros(3), activation="relu")
    np.testing.assert_allclose(rows(z, mask), want, rtol=2**-8, atol=1e-6)  # one rounding to 8 bits
    assert layer.running_mean is not None
    assert layer.running_mean.dtype == torch.float32
    assert_close(layer.running_mean.double().numpy(), 0.1 * rows(x, mask).mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("activation", [None, "silu"])
def test_double_backward_is_that_of_the_packed_values(activation, dtype):
    layer = bn.BatchNorm1d(3, activation=activation, dtype=dtype)
    x, residual, _ = tensors((3, 3, 5), dtype)
    mask = torch.arange(5) < torch.tensor([5, 2, 4])[:, None]
    x, inputs = x.requires_grad_(), [residual.requires_grad_(), layer.weight, layer.bias]
    packed = (t.movedim(1, -1)[mask] for t in (x, residual))
    found = []
    for z in (layer(x, residual, mask=mask), layer(*packed)):
        (dx,) = torch.autograd.grad(z.pow(3).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(dx.square().sum(), [x, *inputs], allow_unused=True, materialize_grads=True))
    tolerance = 1e-9 if dtype == torch.float64 else 1e-3  # third derivatives of values near 1, summed over 11 values
    assert_close(*found, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("frozen", ["input", "affine", "everything"])
def test_what_needs_no_gradient_gets_none(frozen):
    layer = bn.BatchNorm1d(3, activation="relu").requires_grad_(frozen == "input")
    x = torch.randn(3, 3, 5, requires_grad=frozen == "affine")
    z = layer(x, lengths=torch.tensor([5, 2, 4]))
    assert z.requires_grad == (frozen != "everything")
    if z.requires_grad:
        z.square().sum().backward()
    assert (x.grad is not None) == (frozen == "affine")
    assert (layer.weight.grad is not None) == (frozen == "input")


def test_a_mask_of_everything_is_no_mask():
    layer, plain = bn.BatchNorm1d(3), bn.BatchNorm1d(3)
    x = torch.randn(3, 3, 5)
    assert_close(layer(x, lengths=torch.tensor([5, 5, 5])), plain(x), rtol=0, atol=0)
    assert_close(layer.running_var, plain.running_var, rtol=1e-6, atol=0)


def test_a_virtual_batch_without_a_value_that_counts_passes_zeros():
    layer = bn.BatchNorm1d(3, virtual_batch_size=2, momentum=1.0)
    x, lengths = torch.randn(6, 3, 5), torch.tensor([5, 4, 0, 0, 3, 1])
    z = layer(x, lengths=lengths)
    assert (z[2:4] == 0).all()
    for group in (slice(0, 2), slice(4, 6)):
        assert_close(z[group], bn.BatchNorm1d(3)(x[group], lengths=lengths[group]))
    counted = torch.from_numpy(rows(x, torch.arange(5) < lengths[:, None])).float()
    assert_close(layer.running_mean, counted.mean(0))
    assert_close(layer.running_var, counted.var(0))


def test_in_eval_a_residual_in_the_padding_does_not_matter():
    layer = bn.BatchNorm1d(3, activation="silu").eval()
    x, residual, _ = tensors((2, 3, 4), torch.float32)
    residual[1, :, 2:] = torch.nan
    z = layer(x, residual.requires_grad_(), lengths=torch.tensor([4, 2]))
    z.sum().backward()
    assert residual.grad is not None
    assert torch.isfinite(residual.grad).all()
    assert torch.isfinite(layer.weight.grad).all()  # pyright: ignore[reportArgumentType]
    assert_close(z[0], layer(x, residual.nan_to_num())[0])


def test_a_network_without_running_statistics_is_masked_in_eval_too():
    layer = bn.BatchNorm1d(3, track_running_stats=False).eval()
    x, lengths = torch.randn(2, 3, 4), torch.tensor([4, 2])
    assert_close(layer(x, lengths=lengths), bn.BatchNorm1d(3)(x, lengths=lengths))


def test_a_mask_is_a_tensor_with_an_axis_of_examples():
    layer, x = bn.BatchNorm1d(3), torch.randn(2, 3, 4)
    with pytest.raises(bn.BatchNormError, match=r"must be a bool tensor.*got list"):
        layer(x, mask=[True, False])  # pyright: ignore[reportArgumentType]
    with pytest.raises(bn.BatchNormError, match="got a scalar"), bn.masked(layer, mask=torch.tensor(True)):
        pass


@pytest.mark.parametrize(
    "unpack",
    [lambda t: t.mT.contiguous().mT if t.dim() > 2 else t, lambda t: t.float() if t.dtype == torch.float64 else t],
    ids=["other strides", "narrow statistics"],
)
def test_saved_tensors_may_come_back_as_hooks_made_them(unpack):
    layer, mask = bn.BatchNorm1d(3, activation="relu"), torch.tensor([[True] * 4, [True, True, False, False]])
    x, dz = (torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    x.requires_grad_()

    def gradients():
        return torch.autograd.grad(layer(x, mask=mask), [x, *layer.parameters()], dz)

    wanted = gradients()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, unpack):
        found = gradients()
    # Tolerance: statistics that were float32 for a while.
    assert_close(found, wanted, rtol=1e-5, atol=1e-6)
