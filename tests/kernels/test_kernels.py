"""Test the compiled kernels in training against a float64 oracle in numpy."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import reference
from support.kernel_cases import SLOPE, TOLERANCE, VIEWS, by_the_kernels, check, make, run, to_numpy

import batchnorm as bn
from batchnorm.kernels import bindings, dispatch
from batchnorm.kernels.activation import FUNCTIONS, Activation, Transform

pytestmark = by_the_kernels

# Map sizes near the widths of the vectors and of the unrolled loop.
SHAPES = [(7, 5, s) for s in range(1, 18)] + [(3, 2, 31), (3, 2, 33), (2, 3, 63), (2, 3, 64), (2, 3, 65), (1, 3, 257)]
# Every width that packs rows differently, and rows whose last vector overlaps the one before it.
CHANNELS = [*range(1, 34), 64, 65, 127, 128, 129, 130, 135, 150, 168, 184, 200, 255, 256, 520, 1000, 1024, 1025]


@pytest.mark.parametrize("channels_last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu"])
class TestValues:
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_map_sizes(self, shape, channels_last, dtype, activation):
        check(*make(shape, dtype, channels_last), activation)

    @pytest.mark.parametrize("channels", CHANNELS)
    def test_channel_counts(self, channels, channels_last, dtype, activation):
        check(*make((5, channels, 2, 3), dtype, channels_last), activation)

    # Maps shorter than a vector form rows. The rows of (2000, 3, 2, 2) are narrower than a vector too.
    @pytest.mark.parametrize("shape", [(8, 48, 28, 29), (260, 30, 3, 3), (2000, 3, 2, 2)], ids=str)
    def test_large(self, shape, channels_last, dtype, activation):
        check(*make(shape, dtype, channels_last), activation)


# Maps, rows, packed rows, overlapping and single vectors, two threads.
FORMS = [(6, 5, 33), (4, 40, 2, 3), (7, 130, 3, 3), (5, 3, 2), (2, 9, 16), (8, 48, 28, 29)]


@pytest.mark.parametrize("shape", FORMS, ids=str)
@pytest.mark.parametrize("channels_last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("activation", [None, *get_args(Activation)])
@pytest.mark.parametrize("adds", [False, True], ids=["", "residual"])
def test_every_activation_with_and_without_a_residual(shape, channels_last, dtype, activation, adds):
    residual = make(shape, dtype, channels_last, seed=1)[3] if adds else None
    check(*make(shape, dtype, channels_last), activation, residual)


def units(got, want):
    """Return the errors in units of the last place of float32."""
    exponents = np.floor(np.log2(np.maximum(np.abs(want), 2.0**-126)))
    return np.abs(got - want) / 2 ** (exponents - 23)


# In units in the last place. sigmoid is the exponential, an addition and a division; gelu the distribution function,
# which is two polynomials and a division, times y. For gelu_tanh the exponent is a rounded cubic, of size 7 at y = 3.
UNITS = {"sigmoid": 2.5, "silu": 2.5, "hardswish": 2.5, "gelu": 5.5, "gelu_tanh": 16}
REACH = {"sigmoid": 87, "silu": 87, "hardswish": 9, "gelu": 9, "gelu_tanh": 3}  # sigmoid(-87) is near the least normal


@pytest.mark.parametrize("activation", UNITS)
def test_the_error_of_each_activation_in_units_of_the_last_place(activation):
    reach = REACH[activation]
    y = np.concatenate(
        [np.linspace(-reach, reach, 200_000), np.geomspace(1e-30, 1, 20_000), -np.geomspace(1e-30, 1, 20_000)]
    )
    x = torch.from_numpy(y).float().reshape(1, 1, -1)
    z = dispatch.normalize(x, torch.zeros(1), torch.ones(1), Transform(None, None, 1e-30, activation))
    want = reference.activate(to_numpy(x), activation)
    assert units(to_numpy(z), want).max() < UNITS[activation]


@pytest.mark.parametrize("activation", get_args(Activation))
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan, 1e30, -1e30, 120.0, -120.0, 6.0, 3.0, -3.0, 0.0])
def test_special_values_give_what_they_give_in_torch(activation, value):
    x = torch.randn(2, 1, 40)
    special = torch.zeros(2, 1, 40)
    special[0, 0, 7] = value
    # With gamma and beta 0 the sum is the residual itself.
    leaves = [special.clone().requires_grad_() for _ in range(2)]
    z = bn.functional.batch_norm(
        x, None, None, torch.zeros(1), torch.zeros(1), training=True, activation=activation, residual=leaves[0]
    )
    theirs = FUNCTIONS[activation](leaves[1], 0.01)
    torch.testing.assert_close(z, theirs, rtol=1e-5, atol=1e-6, equal_nan=True)
    if value != value and activation in ("relu6", "hardswish"):
        return  # torch's own gradient is 1 in short tensors there, and 0 or NaN in long ones
    ours, wanted = (torch.autograd.grad(out.sum(), leaf)[0] for out, leaf in zip((z, theirs), leaves, strict=True))
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("activation", get_args(Activation))
@pytest.mark.parametrize("bits", [0x7FC00001, 0x7FFFFFFF, 0xFFC00001, 0xFFFFFFFF], ids=hex)
@pytest.mark.parametrize("places", [40, 3], ids=["in a vector", "alone"])
def test_nan_stays_nan_whatever_its_payload(activation, bits, places):
    x = torch.randn(2, 1, places)
    residual = torch.zeros(2, 1, places)
    residual.view(torch.int32)[0, 0, 1] = bits - 2**32 if bits >= 2**31 else bits
    transform = Transform(torch.zeros(1), torch.zeros(1), 1e-5, activation, residual=residual)
    z = dispatch.normalize_by_batch(x, transform)[0]
    assert z.isnan().nonzero().tolist() == [[0, 0, 1]]


@pytest.mark.parametrize("activation", [None, "silu"])
def test_the_residual_is_saved_only_for_the_slope(activation):
    x, weight, bias, dz = make((4, 6, 5, 5))
    leaves = [t.requires_grad_() for t in (x, weight, bias, dz.clone())]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        dispatch.normalize_by_batch(x, Transform(weight, bias, 1e-5, activation, residual=leaves[3]))
    maps = [t for t in saved if t.numel() == x.numel()]
    assert len(maps) == (1 if activation is None else 2)  # torch's BN and SiLU save two, with an addition too
    assert maps[0] is x


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_a_residual_may_have_another_layout(channels_last, activation):
    x, weight, bias, dz = make((4, 6, 5, 5), channels_last=channels_last)
    residual = make((4, 6, 5, 5), channels_last=not channels_last, seed=1)[0]
    check(x, weight, bias, dz, activation, residual)
    check(x, weight, bias, dz, activation, residual.transpose(2, 3))


def test_the_gradient_of_a_residual_alone_is_computed():
    x, weight, bias, dz = make((4, 6, 5, 5))
    residual = dz.clone().requires_grad_()
    z = dispatch.normalize_by_batch(x, Transform(weight, bias, 1e-5, "relu", residual=residual))[0]
    (found,) = torch.autograd.grad(z, residual, dz)
    assert torch.equal(found, torch.where(z > 0, dz, 0.0))


@pytest.mark.parametrize("shape", [(9, 4), (1, 4, 6), (3, 4, 2, 5), (2, 4, 3, 2, 2)], ids=str)
def test_any_number_of_axes(shape):
    check(*make(shape), "relu")


def test_vectors_are_normalized_across_the_batch():
    check(*make((4097, 3)), "relu")


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_spread_far_below_the_mean_is_nearer_to_float64_than_torch(channels_last):
    rng = torch.Generator().manual_seed(1)
    x = make((16, 8, 14, 14), channels_last=channels_last)[0]
    x = torch.empty_like(x).copy_(torch.randn(x.shape, generator=rng) * 1e-2 + 1e4)
    ones, zeros = torch.ones(8), torch.zeros(8)
    want = reference.forward(to_numpy(x), np.ones(8), np.zeros(8))
    ours = dispatch.normalize_by_batch(x, Transform(ones, zeros, 1e-5))[0]
    torchs = F.batch_norm(x, None, None, ones, zeros, training=True)
    error, torch_error = (np.abs(to_numpy(z) - want).max() for z in (ours, torchs))
    assert error < 1e-5  # the deviations are exact; torch's error is a twentieth
    assert error < torch_error / 100


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_constant_channel_is_its_bias_exactly(channels_last):
    x, weight, bias, dz = make((4, 6, 5, 5), channels_last=channels_last)
    x[:, 2] = 0.1
    z, _, var, dx, *_ = run(x, weight, bias, dz, None)
    assert (z[:, 2] == bias[2]).all()
    assert var[2] == 0
    assert dx.isfinite().all()


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")], ids=str)
@pytest.mark.parametrize("at", [0, 3], ids=["first value", "later value"])
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_inf_and_nan_change_only_their_channel_as_in_torch(value, at, activation, channels_last):
    x, weight, bias, dz = make((4, 6, 5, 5), channels_last=channels_last)
    x[0, 2, 0, at] = value
    z, mean, _, dx, dweight, dbias = run(x, weight, bias, dz, activation)
    x, weight, bias = (t.clone().requires_grad_() for t in (x, weight, bias))
    theirs = F.batch_norm(x, None, None, weight, bias, training=True)
    theirs = theirs.relu() if activation else theirs
    gradients = torch.autograd.grad(theirs, (x, weight, bias), dz)
    for ours, other in zip((z, dx, dweight, dbias), (theirs, *gradients), strict=True):
        assert torch.equal(ours.isnan(), other.isnan())
    torch.testing.assert_close(mean, x.detach().mean((0, 2, 3)), equal_nan=True)  # inf itself, not NaN


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [29, 135, 168, 200])
@pytest.mark.parametrize("back", [1, 8, 9, 16, 17, 24])
def test_where_vectors_overlap_inf_changes_only_its_channel(channels, back, dtype):
    x, weight, bias, dz = make((11, channels), dtype)
    clean = run(x, weight, bias, dz, "relu")
    x[3, -back] = dz[4, -back] = torch.inf
    others = torch.arange(channels) != channels - back
    for got, want in zip(run(x, weight, bias, dz, "relu"), clean, strict=True):
        torch.testing.assert_close(got[..., others], want[..., others], rtol=1e-5, atol=1e-5)
        assert not got[..., ~others].isfinite().all()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_denormals_are_kept(channels_last, dtype):
    x, weight, bias, dz = make((4, 6, 5, 5), channels_last=channels_last)
    x = torch.empty_like(x, dtype=dtype).copy_(x * 1e-40)
    z, mean, *_ = run(x, weight * 0 + 1e20, bias * 0, dz.to(dtype), None, eps=1e-30)
    assert mean.abs().min() > 0
    want = reference.forward(to_numpy(x), np.full(6, 1e20), np.zeros(6), eps=1e-30)
    np.testing.assert_allclose(to_numpy(z), want, atol=1e-30, rtol=max(2e-6, TOLERANCE[dtype]))


def test_values_near_the_largest_float_have_finite_results_where_torch_overflows():
    x, weight, bias, dz = make((4, 3, 8))
    z = run(x * 1e30, weight, bias, dz, None)[0]
    np.testing.assert_allclose(
        to_numpy(z), reference.forward(to_numpy(x * 1e30), to_numpy(weight), to_numpy(bias)), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("channels_last", [False, True])
def test_sums_that_overflow_float_are_finite(channels_last):
    x, weight, bias, dz = make((32, 4, 16, 16), channels_last=channels_last)
    x, dz = x * 2e37, dz.abs() * 5e36
    x[:, 1:] /= 1e37  # so that the gradients of the others are of the size of dz
    z, _, _, dx, *_ = run(x, weight, bias, dz, None)
    want = reference.forward(to_numpy(x), to_numpy(weight), to_numpy(bias))
    np.testing.assert_allclose(to_numpy(z), want, rtol=1e-5, atol=1e-5)
    slopes = reference.backward(to_numpy(dz), to_numpy(x), to_numpy(weight), to_numpy(bias))[0]
    np.testing.assert_allclose(to_numpy(dx)[:, 1:], slopes[:, 1:], rtol=1e-4, atol=1e-5 * np.abs(slopes).max())


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_variance_is_accurate_if_the_sampled_values_are_outliers(channels_last):
    # The three values that the kernel samples for its shift are outliers, 100 standard deviations off. With float sums
    # alone, the error of the variance would be 1e-3.
    x, *_ = make((8, 4, 30, 30), channels_last=channels_last)
    for n, s in ((0, 450), (4, 300), (7, 599)):
        x[n, :, s // 30, s % 30] = 203.0
    mean, var = dispatch.normalize_by_batch(x, Transform(None, None, 1e-5))[1:]
    want = reference.population(to_numpy(x))
    np.testing.assert_allclose(to_numpy(mean), want[0], rtol=2e-7)
    np.testing.assert_allclose(to_numpy(var), want[1], rtol=2e-7)


@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients_whose_products_overflow_float(channels_last):
    x, weight, bias, dz = make((4, 3, 8, 8), channels_last=channels_last)
    got = run(x * 1e30, weight, bias, dz * 1e15, None)
    arrays = to_numpy(x * 1e30), to_numpy(weight), to_numpy(bias)
    want = reference.backward(to_numpy(dz * 1e15), *arrays, 1e-5, None)
    for ours, theirs in zip(got[4:], want[1:3], strict=True):
        np.testing.assert_allclose(to_numpy(ours), theirs, rtol=1e-5)


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_tiny_spread_with_a_tinier_eps(channels_last):
    x, weight, bias, dz = make((4, 3, 8, 8), channels_last=channels_last)
    x = torch.empty_like(x).copy_(x * 1e-25)  # squares vanish in float
    z = run(x, weight, bias, dz, None, eps=1e-60)[0]
    want = reference.forward(to_numpy(x), to_numpy(weight), to_numpy(bias), 1e-60)
    np.testing.assert_allclose(to_numpy(z), want, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_backward_sees_the_same_mask_as_the_forward(activation, channels_last):
    # Values of exactly the mean, 1, and its neighbors: y is 0 in a fifth of the places and near 0 in the others.
    steps = (torch.arange(10) % 5 - 2) * 2.0**-22
    x, *_ = make((10, 5, 7, 9), channels_last=channels_last)
    x = torch.empty_like(x).copy_(1 + steps[:, None, None, None])
    weight, bias = torch.ones(5), torch.zeros(5)
    z, _, _, saved = bindings.forward(x, Transform(weight, bias, 1e-5, activation, SLOPE))
    assert (z == 0).any()
    ones = torch.ones_like(x)
    dbias = bindings.backward(ones, x, Transform(weight, bias, 1e-5, activation, SLOPE), saved)[2]
    open_gates = (z > 0).sum((0, 2, 3)) + (SLOPE if activation == "leaky_relu" else 0) * (z <= 0).sum((0, 2, 3))
    torch.testing.assert_close(dbias, open_gates.float(), rtol=1e-6, atol=0)


def test_an_empty_batch_has_nan_statistics_as_in_torch():
    z, mean, var = dispatch.normalize_by_batch(torch.empty(0, 3, 4), Transform(torch.ones(3), torch.zeros(3), 1e-5))
    assert z.shape == (0, 3, 4)
    assert mean.isnan().all()
    assert var.isnan().all()


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_any_strides_give_the_right_result(view, channels_last):
    x, *_ = make((6, 6, 8, 8), channels_last=channels_last)
    x = view(x.contiguous() if view is VIEWS["offset"] else x)
    _, weight, bias, dz = make(tuple(x.shape))
    check(x, weight, bias, dz, "relu")


def test_a_lazy_negation_is_applied():
    x, weight, bias, dz = make((6, 5, 4, 4))
    lazy_x, lazy_dz = (torch.ops.aten._neg_view(t.neg()) for t in (x, dz))
    assert lazy_x.is_neg()
    for got, want in zip(run_as_given(lazy_x, lazy_dz, weight, bias), run_as_given(x, dz, weight, bias), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def run_as_given(x, dz, weight, bias):
    x.requires_grad_()
    z, *_ = dispatch.normalize_by_batch(x, Transform(weight, bias, 1e-5, "relu"))
    return z, *torch.autograd.grad(z, x, dz)


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_output_and_the_gradient_keep_the_memory_format(channels_last):
    x, weight, bias, dz = make((3, 5, 4, 6), channels_last=channels_last)
    z, _, _, dx, *_ = run(x, weight, bias, dz.contiguous(), "relu")
    assert z.stride() == x.stride()
    assert dx.stride() == x.stride()


@pytest.fixture
def guarded(monkeypatch):
    """Allocate the outputs of the kernels between guard bytes. Return the guards, which must not change."""
    guards = []
    empty, empty_like = torch.empty, torch.empty_like

    def between_guards(out):
        pad = 256 // out.itemsize
        whole = torch.full((out.numel() + 2 * pad,), 77.0, dtype=out.dtype)
        guards.extend((whole[:pad], whole[-pad:]))
        return whole.as_strided(out.shape, out.stride(), pad)

    monkeypatch.setattr(torch, "empty", lambda *args, **options: between_guards(empty(*args, **options)))
    monkeypatch.setattr(torch, "empty_like", lambda x: between_guards(empty_like(x)))
    return guards


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 33, 17), (5, 64, 49), (40, 3), (2, 130, 5), (7, 200, 3)], ids=str)
def test_nothing_is_written_outside_the_outputs(shape, dtype, channels_last, guarded):
    x, weight, bias, dz = make(shape, dtype, channels_last)
    running = bindings.Running(torch.empty(shape[1]), torch.empty(shape[1]), 0.1)
    how = Transform(weight, bias, 1e-5, "relu", 0.0, residual=make(shape, dtype, channels_last, 1)[0])
    z, batch, _, saved = bindings.forward(x, how)
    assert batch is not None
    tracked = bindings.forward(x, how, running)
    gradients = bindings.backward(dz, x, how, saved, want_dresidual=True)
    assert gradients.x is not None
    assert gradients.residual is not None
    inferred = bindings.inference(x, batch[0], batch[1], how)
    gradient = (gradients.x, gradients.weight, gradients.bias, gradients.residual)
    outputs = (z, batch, saved, tracked.z, tracked.saved, running.mean, running.var, *gradient, inferred)
    assert len(guarded) == 2 * len(outputs)
    assert all((guard == 77).all() for guard in guarded)
    assert not any((out == 77).any() for out in outputs), "left out"


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 9),
    channels=st.integers(1, 70),
    places=st.lists(st.integers(1, 9), max_size=3),
    channels_last=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    activation=st.sampled_from([None, *get_args(Activation)]),
    adds=st.booleans(),
    seed=st.integers(0, 99),
)
@example(  # a channel of two equal values, whose variance is 0
    n=2, channels=62, places=[], channels_last=False, dtype=torch.bfloat16, activation=None, adds=False, seed=2
)
def test_random_shapes(n, channels, places, channels_last, dtype, activation, adds, seed):
    shape, last = (n, channels, *places), channels_last and len(places) > 0
    if n * int(np.prod(places)) > 1:
        residual = make(shape, dtype, last, seed + 1)[3] if adds else None
        check(*make(shape, dtype, last, seed), activation, residual)
