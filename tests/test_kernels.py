"""The compiled kernels against a float64 oracle in numpy, and their place beneath `batch_norm`."""

from __future__ import annotations

import copy
import os
import platform
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

import batchnorm as bn
from batchnorm import differentiable, functional, kernels

SLOPE = 0.1
# float32: a handful of roundings of values near 1. bfloat16: half a unit in the last of its 8 bits.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-8}

needs_kernels = pytest.mark.skipif(not kernels.kernels_available(), reason="built without the compiled kernels")
pytestmark = needs_kernels


@pytest.fixture(autouse=True)
def _the_kernel_takes_small_tensors_too(monkeypatch):
    monkeypatch.setattr(functional, "FEWEST_IN_INFERENCE", 1)


def to_numpy(t):
    return t.detach().double().numpy()


def make(shape, dtype=torch.float32, channels_last=False, seed=0):
    """x, weight, bias, dz, with x and dz in the layout asked for."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=rng) * 2 + 3
    dz = torch.randn(shape, generator=rng)
    weight = torch.rand(shape[1], generator=rng) + 0.5
    bias = torch.randn(shape[1], generator=rng)
    layout = (lambda t: t.movedim(1, -1).contiguous().movedim(-1, 1)) if channels_last else (lambda t: t)
    return layout(x.to(dtype)), weight, bias, layout(dz.to(dtype))


def run(x, weight, bias, dz, activation, eps=1e-5):
    """(z, mean, unbiased var, dx, dweight, dbias) by the public function's inner half."""
    x, weight, bias = (t.detach().clone().requires_grad_() for t in (x, weight, bias))
    z, mean, var = functional.normalize_by_batch(x, weight, bias, eps, activation, SLOPE)
    return z, mean, var, *torch.autograd.grad(z, (x, weight, bias), dz)


def check(x, weight, bias, dz, activation):
    z, mean, var, dx, dweight, dbias = run(x, weight, bias, dz, activation)
    arrays = [to_numpy(t) for t in (x, weight, bias)]
    forward = (*arrays, 1e-5)
    want = (
        reference.forward(*forward, activation, SLOPE),
        *reference.population(arrays[0]),
        *reference.backward(to_numpy(dz), *forward, activation, SLOPE),
    )
    tolerance = TOLERANCE[x.dtype]
    # At the kink of g, float32 and float64 may stand on different sides: there either gradient is right.
    kink = (np.abs(reference.forward(*forward)) < 1e-4) & (activation is not None)
    count = max(1, x.numel() // x.shape[1])
    names = ("z", "mean", "var", "dx", "dweight", "dbias")
    for name, got, expected in zip(names, (z, mean, var, dx, dweight, dbias), want, strict=False):
        relative = 2e-6 if name in ("mean", "var") else tolerance
        # A sum's own scale is that of its terms, and a value at the kink may be missing from it.
        absolute = relative * (1 + np.abs(expected).max())
        if name == "dx":  # its three terms may cancel: with two values a channel they leave nothing
            absolute *= 1 + np.abs(arrays[1] / np.sqrt(want[2] + 1e-5)).max() * np.abs(to_numpy(dz)).max()
        if name in ("dweight", "dbias"):
            absolute = 4e-6 * np.sqrt(count) + kink.sum() * 10
        error = np.abs(to_numpy(got) - expected)
        allowed = absolute + relative * np.abs(expected)
        if name == "dx":
            allowed = np.where(kink, np.inf, allowed + kink.sum() * 20 / count)
        assert got.shape == expected.shape
        assert (error <= allowed).all(), f"{name}: off by {np.max(error - allowed)} more than allowed"


# ---- Values ----

# Sizes of maps around the vectors' widths and the unrolled loop's; one image of many places; one place of many images.
SHAPES = [(7, 5, s) for s in range(1, 18)] + [(3, 2, 31), (3, 2, 33), (2, 3, 63), (2, 3, 64), (2, 3, 65), (1, 3, 257)]
CHANNELS = [1, 2, 3, 15, 16, 17, 31, 64, 65, 127, 128, 129, 255, 256, 1024, 1025]


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

    # Maps shorter than a vector lie in rows; those of (2000, 3, 2, 2) are narrower than a vector too.
    @pytest.mark.parametrize("shape", [(8, 48, 28, 29), (260, 30, 3, 3), (2000, 3, 2, 2)], ids=str)
    def test_large(self, shape, channels_last, dtype, activation):
        check(*make(shape, dtype, channels_last), activation)


@pytest.mark.parametrize("shape", [(9, 4), (1, 4, 6), (3, 4, 2, 5), (2, 4, 3, 2, 2)], ids=str)
def test_any_number_of_axes(shape):
    check(*make(shape), "relu")


def test_a_value_per_place_is_normalised_across_the_batch():
    check(*make((4097, 3)), "relu")


# ---- Values that break others ----


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_spread_far_below_the_mean_is_nearer_to_float64_than_torch(channels_last):
    rng = torch.Generator().manual_seed(1)
    x = make((16, 8, 14, 14), channels_last=channels_last)[0]
    x = torch.empty_like(x).copy_(torch.randn(x.shape, generator=rng) * 1e-2 + 1e4)
    ones, zeros = torch.ones(8), torch.zeros(8)
    want = reference.forward(to_numpy(x), np.ones(8), np.zeros(8))
    ours = functional.normalize_by_batch(x, ones, zeros, 1e-5)[0]
    torchs = F.batch_norm(x, None, None, ones, zeros, training=True)
    error, torch_error = (np.abs(to_numpy(z) - want).max() for z in (ours, torchs))
    assert error < 1e-5  # the deviations themselves are exact; torch is off by a twentieth
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
def test_inf_and_nan_spoil_their_channel_alone_as_in_torch(value, at, activation, channels_last):
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


@pytest.mark.parametrize("channels_last", [False, True])
def test_denormals_are_kept(channels_last):
    x, weight, bias, dz = make((4, 6, 5, 5), channels_last=channels_last)
    x.mul_(1e-40)
    z, mean, *_ = run(x, weight * 0 + 1, bias * 0, dz, None, eps=1e-30)
    assert mean.abs().min() > 0
    want = reference.forward(to_numpy(x), np.ones(6), np.zeros(6), eps=1e-30)
    np.testing.assert_allclose(to_numpy(z), want, atol=1e-45, rtol=2e-6)


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
    x[:, 1:] /= 1e37  # so that the others' gradients are of the size of dz
    z, _, _, dx, *_ = run(x, weight, bias, dz, None)
    want = reference.forward(to_numpy(x), to_numpy(weight), to_numpy(bias))
    np.testing.assert_allclose(to_numpy(z), want, rtol=1e-5, atol=1e-5)
    slopes = reference.backward(to_numpy(dz), to_numpy(x), to_numpy(weight), to_numpy(bias))[0]
    np.testing.assert_allclose(to_numpy(dx)[:, 1:], slopes[:, 1:], rtol=1e-4, atol=1e-5 * np.abs(slopes).max())


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_variance_far_below_what_the_first_look_suggests(channels_last):
    # What the kernel takes for a typical value are three outliers: 100 standard deviations off in each channel. Summed
    # in float alone, the variance would err by 1e-3.
    x, *_ = make((8, 4, 30, 30), channels_last=channels_last)
    for n, s in ((0, 450), (4, 300), (7, 599)):
        x[n, :, s // 30, s % 30] = 203.0
    mean, var = functional.normalize_by_batch(x, None, None, 1e-5)[1:]
    want = reference.population(to_numpy(x))
    np.testing.assert_allclose(to_numpy(mean), want[0], rtol=2e-7)
    np.testing.assert_allclose(to_numpy(var), want[1], rtol=2e-7)


@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients_whose_products_overflow_float(channels_last):
    x, weight, bias, dz = make((4, 3, 8, 8), channels_last=channels_last)
    got = run(x * 1e30, weight, bias, dz * 1e15, None)
    arrays = [to_numpy(t) for t in (x * 1e30, weight, bias)]
    want = reference.backward(to_numpy(dz * 1e15), *arrays, 1e-5, None)
    for ours, theirs in zip(got[4:], want[1:], strict=True):
        np.testing.assert_allclose(to_numpy(ours), theirs, rtol=1e-5)


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_tiny_spread_is_seen_by_a_tinier_eps(channels_last):
    x, weight, bias, dz = make((4, 3, 8, 8), channels_last=channels_last)
    x = torch.empty_like(x).copy_(x * 1e-25)  # squares vanish in float
    z = run(x, weight, bias, dz, None, eps=1e-60)[0]
    want = reference.forward(to_numpy(x), to_numpy(weight), to_numpy(bias), 1e-60)
    np.testing.assert_allclose(to_numpy(z), want, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_backward_sees_the_same_mask_as_the_forward(activation, channels_last):
    # A mean of exactly 1, and neighbours of it: y is zero in a fifth of the places and next to it in the others.
    steps = (torch.arange(10) % 5 - 2) * 2.0**-22
    x, *_ = make((10, 5, 7, 9), channels_last=channels_last)
    x = torch.empty_like(x).copy_(1 + steps[:, None, None, None])
    weight, bias = torch.ones(5), torch.zeros(5)
    z, _, saved = kernels.forward(x, weight, bias, 1e-5, activation, SLOPE)
    assert (z == 0).any()
    ones = torch.ones_like(x)
    dbias = kernels.backward(ones, x, weight, bias, saved, activation, SLOPE)[2]
    open_gates = (z > 0).sum((0, 2, 3)) + (SLOPE if activation == "leaky_relu" else 0) * (z <= 0).sum((0, 2, 3))
    torch.testing.assert_close(dbias, open_gates.float(), rtol=1e-6, atol=0)


def test_an_empty_batch_has_nan_statistics_as_in_torch():
    z, mean, var = functional.normalize_by_batch(torch.empty(0, 3, 4), torch.ones(3), torch.zeros(3), 1e-5)
    assert z.shape == (0, 3, 4)
    assert mean.isnan().all()
    assert var.isnan().all()


# ---- Layouts, memory ----

VIEWS = {
    "batch slice": lambda x: x[1:5],
    "channel slice": lambda x: x[:, 1:4],
    "strided": lambda x: x[..., ::2],
    "transposed": lambda x: x.transpose(2, 3),
    "flipped axes": lambda x: x.permute(3, 1, 2, 0),
    "expanded": lambda x: x[:1].expand(5, -1, -1, -1),
    "offset": lambda x: x.flatten()[3 : 3 + 4 * 6 * 5].view(4, 6, 5),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_any_strides_give_the_right_result(view, channels_last):
    x, *_ = make((6, 6, 8, 8), channels_last=channels_last)
    x = view(x.contiguous() if view is VIEWS["offset"] else x)
    _, weight, bias, dz = make(tuple(x.shape))
    check(x, weight, bias, dz, "relu")


def test_a_sign_beside_the_memory_counts():
    x, weight, bias, dz = make((6, 5, 4, 4))
    negated = (torch._neg_view(t.neg()) for t in (x, dz))
    for got, want in zip(run_as_given(*negated, weight, bias), run_as_given(x, dz, weight, bias), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def run_as_given(x, dz, weight, bias):
    x.requires_grad_()
    z, *_ = functional.normalize_by_batch(x, weight, bias, 1e-5, "relu")
    return z, *torch.autograd.grad(z, x, dz)


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_output_and_the_gradient_keep_the_memory_format(channels_last):
    x, weight, bias, dz = make((3, 5, 4, 6), channels_last=channels_last)
    z, _, _, dx, *_ = run(x, weight, bias, dz.contiguous(), "relu")
    assert z.stride() == x.stride()
    assert dx.stride() == x.stride()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 33, 17), (5, 64, 49), (40, 3), (2, 130, 5)], ids=str)
def test_nothing_is_written_outside_the_outputs(shape, dtype, channels_last, monkeypatch):
    guarded = []

    def guard(like, dtype):
        pad = 256 // dtype.itemsize
        whole = torch.full((like.numel() + 2 * pad,), 77.0, dtype=dtype)
        guarded.append((whole, pad))
        return whole[pad:-pad].as_strided(like.shape, like.stride(), pad)

    plain = torch.empty_like
    x, weight, bias, dz = make(shape, dtype, channels_last)
    monkeypatch.setattr(torch, "empty_like", lambda t: guard(plain(t), t.dtype))
    z, batch, saved = kernels.forward(x, weight, bias, 1e-5, "relu", 0.0)
    dx, *_ = kernels.backward(dz, x, weight, bias, saved, "relu", 0.0)
    e = kernels.inference(x, *batch, weight, bias, 1e-5, "relu", 0.0)
    assert len(guarded) == 3
    for (whole, pad), out in zip(guarded, (z, dx, e), strict=True):
        assert not (out == 77).all()
        assert (whole[:pad] == 77).all()
        assert (whole[-pad:] == 77).all()


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 9),
    channels=st.integers(1, 70),
    places=st.lists(st.integers(1, 9), max_size=3),
    channels_last=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    activation=st.sampled_from([None, "relu", "leaky_relu"]),
    seed=st.integers(0, 99),
)
@example(  # a channel of two equal values, whose variance is 0
    n=2, channels=62, places=[], channels_last=False, dtype=torch.bfloat16, activation=None, seed=2
)
def test_random_shapes(n, channels, places, channels_last, dtype, activation, seed):
    shape = (n, channels, *places)
    if n * int(np.prod(places)) > 1:
        check(*make(shape, dtype, channels_last and len(places) > 0, seed), activation)


# ---- Inference ----


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu", "sigmoid"])
@pytest.mark.parametrize("shape", [(3, 5, 7, 3), (2, 64, 6, 6), (1, 1025, 1, 1), (0, 3, 2, 2)], ids=str)
def test_inference_values(shape, activation, dtype, channels_last):
    x, weight, bias, _ = make(shape, dtype, channels_last)
    mean, var = torch.linspace(2, 4, shape[1]), torch.linspace(0.5, 5, shape[1])
    z = functional.normalize(x, mean, var, weight, bias, 1e-5, activation, SLOPE)
    arrays = [to_numpy(t) for t in (x, weight, bias)]
    want = reference.forward(*arrays, 1e-5, activation, SLOPE, to_numpy(mean), to_numpy(var))
    # The sigmoid is torch's operation behind the kernel: y, below 8, is rounded once more before it.
    once_more = 8 * TOLERANCE[dtype] / 4 if activation == "sigmoid" else 0
    np.testing.assert_allclose(to_numpy(z), want, rtol=2 * TOLERANCE[dtype], atol=4e-6 + once_more)
    assert z.stride() == x.stride()


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(9, 37, 17, 13), (4, 300, 9, 9), (3000, 3, 3, 3)], ids=str)
def test_threads_share_an_inference_and_leave_nothing_out(shape, dtype, channels_last, threads):
    x, weight, bias, _ = make(shape, dtype, channels_last)
    mean, var = torch.linspace(2, 4, shape[1]), torch.linspace(0.5, 5, shape[1])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        z = functional.normalize(x, mean, var, weight, bias, 1e-5, "relu")
    finally:
        torch.set_num_threads(before)
    want = torch.relu(F.batch_norm(x.double(), *(t.double() for t in (mean, var, weight, bias))))
    torch.testing.assert_close(z.double(), want, rtol=2 * TOLERANCE[dtype], atol=4e-6)


# ---- The operator in torch's machinery ----


def network(**options):
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3),
        bn.BatchNorm2d(8, activation="relu", **options),
        torch.nn.Conv2d(8, 4, 3),
        bn.BatchNorm2d(4, activation="leaky_relu", **options),
    )


def gradients(model, x):
    z = model(x)
    z.square().sum().backward()
    return z, [p.grad for p in model.parameters()], list(model.buffers())


@pytest.mark.parametrize("channels_last", [False, True])
def test_compiled_whole_and_eager_agree(channels_last):
    eager = network()
    compiled = copy.deepcopy(eager)
    x = torch.randn(4, 3, 9, 9)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    torch._dynamo.reset()
    # The graph alone is under test, not the code generator: "aot_eager" compiles in a second.
    got = gradients(torch.compile(compiled, fullgraph=True, backend="aot_eager"), x)
    torch.testing.assert_close(got, gradients(eager, x), rtol=1e-5, atol=1e-4)


def test_a_default_device_elsewhere_leaves_the_kernel_on_the_cpu():
    layer = bn.BatchNorm2d(4, activation="relu")
    x, *_, dz = make((3, 4, 9, 9))
    want = [t.clone() for t in (*torch.autograd.grad(layer(x), [*layer.parameters()], dz), layer(x))]
    with torch.device("meta"):
        z = layer(x)
        found = [*torch.autograd.grad(z, [*layer.parameters()], dz), z]
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))


def test_a_saved_tensor_may_come_back_with_other_strides():
    x, weight, bias, dz = make((3, 4, 5, 6))
    want = run(x, weight, bias, dz, "relu")

    def unpack(t):
        return t.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0) if t.dim() == 4 else t

    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, unpack):
        found = run(x, weight, bias, dz, "relu")
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))


def test_an_exported_program_may_be_cast_to_half_precision():
    x, weight, bias, dz = (t.half() for t in make((3, 4, 5, 6)))
    want = run(x.float(), weight.float(), bias.float(), dz.float(), "relu")
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    z = torch.ops.batchnorm.normalize_by_batch(*inputs, 1e-5, "relu", 0.0)[0]
    for found, expected in zip((z, *torch.autograd.grad(z, inputs, dz)), (want[0], *want[3:]), strict=True):
        assert found.dtype == torch.float16
        torch.testing.assert_close(found, expected.half(), rtol=2**-10, atol=1e-4)  # rounded once, at the end


@pytest.mark.parametrize(
    ("x", "weight"), [(torch.ones(4, 3).double(), None), (torch.ones(4, 3), torch.ones(2)), (torch.ones(4), None)]
)
def test_the_operator_refuses_what_it_cannot_compute(x, weight):
    with pytest.raises(bn.BatchNormError, match="Export the network again"):
        torch.ops.batchnorm.normalize_by_batch(x, weight, None, 1e-5, None, 0.0)


def test_no_channels_are_nothing_to_compute():
    z, batch, _ = torch.ops.batchnorm.normalize_by_batch(torch.ones(5, 0), None, None, 1e-5, None, 0.0)
    assert z.shape == (5, 0)
    assert batch.shape == (2, 0)


def test_exported_program_calls_the_operator_for_any_batch_size():
    model, x = network(), torch.randn(4, 3, 9, 9)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("n", min=2)},))
    assert "batchnorm.normalize_by_batch" in str(program.graph)
    x = torch.randn(7, 3, 9, 9)
    torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of opcheck's own copies
@pytest.mark.parametrize("stride", [1, 2])
def test_the_operator_passes_torchs_own_checks(stride):
    x, weight, bias, _ = make((4, 3, 8))
    x, weight, bias = (t.detach().requires_grad_() for t in (x[..., ::stride], weight, bias))
    torch.library.opcheck(differentiable.operator, (x, weight, bias, 1e-5, "relu", 0.0))


def test_inductors_code_agrees_with_eager():
    eager = network()
    compiled = copy.deepcopy(eager)
    x = torch.randn(4, 3, 9, 9).contiguous(memory_format=torch.channels_last)
    torch._dynamo.reset()
    got = gradients(torch.compile(compiled, fullgraph=True), x)
    torch.testing.assert_close(got, gradients(eager, x), rtol=1e-5, atol=1e-4)


def test_deterministic_algorithms_are_what_the_kernels_are():
    arguments = make((8, 40, 20, 20))
    free = run(*arguments, "relu")
    torch.use_deterministic_algorithms(True)
    try:
        strict = run(*arguments, "relu")
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(free, strict, strict=True))


def train_a_rank(rank: int, file: str, x: torch.Tensor, results: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    model = torch.nn.parallel.DistributedDataParallel(network(track_running_stats=False))
    model(x[4 * rank : 4 * rank + 4]).square().sum().backward()
    if rank == 0:
        torch.save([p.grad for p in model.parameters()], results)
    torch.distributed.barrier()  # leave together: a process that goes early can abort the other
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")  # of torch.distributed's own
def test_distributed_gradients_are_the_average_over_the_processes(tmp_path):
    x = torch.randn(8, 3, 9, 9)
    results = tmp_path / "gradients.pt"
    torch.multiprocessing.spawn(train_a_rank, (str(tmp_path / "store"), x, str(results)), nprocs=2)
    parts = [gradients(network(track_running_stats=False), half)[1] for half in x.split(4)]
    want = [(a + b) / 2 for a, b in zip(*parts, strict=True)]
    torch.testing.assert_close(torch.load(results), want, rtol=1e-5, atol=1e-5)


def test_autocast_keeps_the_dtype_of_its_input():
    model = network()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = model(torch.randn(4, 3, 9, 9))
    assert z.dtype == torch.bfloat16
    z.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


def test_functional_call_and_its_gradients_agree_with_the_layer():
    model, x = network(track_running_stats=False), torch.randn(4, 3, 9, 9)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    got = torch.func.grad(lambda p: torch.func.functional_call(model, p, (x,)).square().sum())(parameters)
    torch.testing.assert_close(list(got.values()), gradients(model, x)[1], rtol=1e-5, atol=1e-4)


def test_activation_checkpointing_gives_the_same_gradients():
    plain = network()
    model, x = copy.deepcopy(plain), torch.randn(4, 3, 9, 9)
    torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False).square().sum().backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], gradients(plain, x)[1])


@pytest.mark.parametrize("activation", [None, "leaky_relu", "sigmoid"])
def test_double_backward_agrees_with_torchs(activation):
    x, weight, bias, _ = make((6, 3, 5))
    g = {None: lambda y: y, "leaky_relu": lambda y: F.leaky_relu(y, SLOPE), "sigmoid": torch.sigmoid}[activation]

    def penalty(normalize):
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        (dx,) = torch.autograd.grad(normalize(*leaves).pow(3).sum(), leaves[0], create_graph=True)
        return torch.autograd.grad(dx.square().sum(), leaves[:2])

    ours = penalty(lambda x, w, b: functional.normalize_by_batch(x, w, b, 1e-5, activation, SLOPE)[0])
    theirs = penalty(lambda x, w, b: g(F.batch_norm(x, None, None, w, b, training=True)))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_float64_is_torchs_and_passes_gradcheck():
    x, weight, bias, _ = (t.double() for t in make((4, 3, 5)))
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    assert torch.autograd.gradcheck(lambda *t: functional.normalize_by_batch(*t, 1e-5, "leaky_relu")[0], inputs)


def test_saved_for_the_backward_are_the_input_the_parameters_and_two_numbers_a_channel():
    x, weight, bias, _ = (t.requires_grad_() for t in make((4, 3, 50)))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        functional.normalize_by_batch(x, weight, bias, 1e-5, "relu")
    assert {t.data_ptr() for t in saved[:3]} == {t.data_ptr() for t in (x, weight, bias)}
    assert [t.shape for t in saved[3:]] == [(2, 3)]


def test_running_statistics_moved_by_the_kernel_are_noticed_by_autograd():
    mean, var = torch.zeros(3), torch.ones(3)
    version = mean._version
    assert functional.update_running(mean, var, torch.ones(3), torch.ones(3), 0.5) is True
    assert mean._version > version
    assert mean.tolist() == [0.5] * 3


# ---- Threads ----

THREADED = [(8, 40, 40, 40), (9, 1, 90, 90), (3, 1025, 6, 7), (200, 40, 3, 3), (4000, 3, 2, 2)]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", THREADED, ids=str)
def test_the_bits_are_the_same_for_any_number_of_threads(shape, channels_last):
    x, weight, bias, dz = make(shape, channels_last=channels_last)

    def everything():
        saved = kernels.forward(x, weight, bias, 1e-5, "relu", 0.0)[2]
        return *run(x, weight, bias, dz, "relu"), saved  # in double: float32 may hide another order of a sum

    torch.set_num_threads(1)
    one = everything()
    for count in (2, 3):
        torch.set_num_threads(count)
        for a, b in zip(one, everything(), strict=True):
            assert torch.equal(a, b)


def test_threads_are_those_that_torch_already_runs():
    def count():
        return len(list(Path("/proc/self/task").iterdir()))

    if not Path("/proc/self/task").exists():
        pytest.skip("counts threads in /proc")
    assert kernels._kernels.has_pool()
    torch.set_num_threads(2)
    x, weight, bias, dz = make((8, 40, 40, 40))
    x.exp()  # torch's own pool, of this thread
    before = count()
    run(x, weight, bias, dz, "relu")
    assert count() == before


def test_threads_of_python_may_call_at_once():
    arguments = make((8, 40, 40, 40))
    want = run(*arguments, "relu")
    results = []
    workers = [threading.Thread(target=lambda: results.append(run(*arguments, "relu"))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 4
    assert all(torch.equal(a, b) for result in results for a, b in zip(result, want, strict=True))


# ---- Narrower instruction sets ----

NARROW = """
import itertools, sys, torch
from batchnorm import functional, kernels
torch.set_num_threads(1)
torch.manual_seed(0)
found = [kernels._kernels.target()]
functional.FEWEST_IN_INFERENCE = 1
SHAPES = (5, 19, 7, 7), (3, 130, 5, 3), (2, 3, 1, 300), (2, 33, 16, 16)
DTYPES = torch.float32, torch.bfloat16
LAYOUTS = torch.contiguous_format, torch.channels_last
for shape, dtype, layout, activation in itertools.product(SHAPES, DTYPES, LAYOUTS, (None, "relu", "leaky_relu")):
    x, dz = (torch.randn(shape).to(dtype).contiguous(memory_format=layout) for _ in range(2))
    weight, bias = (torch.rand(shape[1]).requires_grad_() for _ in range(2))
    x.requires_grad_()
    z, mean, var = functional.normalize_by_batch(x, weight, bias, 1e-5, activation, 0.1)
    found += [z.detach(), mean, var, *torch.autograd.grad(z, (x, weight, bias), dz)]
    with torch.no_grad():
        found.append(functional.normalize(x, mean, var, weight, bias, 1e-5, activation, 0.1))
torch.save(found, sys.argv[1])
"""


def on_target(target, path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "BATCHNORM_TARGET": target}
    subprocess.run([sys.executable, "-c", NARROW, str(path)], env=environment, check=True)
    return torch.load(path)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="one instruction set only")
def test_every_instruction_set_gives_the_same_within_rounding(tmp_path):
    widest, *want = on_target("", tmp_path / "widest")
    targets = ["x86-64-v2", "x86-64-v3", "x86-64-v4"]
    for target in [t for t in targets if t < widest]:
        name, *got = on_target(target, tmp_path / target)
        assert name == target
        for ours, other in zip(got, want, strict=True):
            tolerance = TOLERANCE[ours.dtype] * (2 if ours.dtype == torch.bfloat16 else 10)
            torch.testing.assert_close(ours, other, rtol=tolerance, atol=tolerance * (1 + float(other.abs().max())))


# ---- Without the extension ----


def test_without_the_extension_torch_computes_the_same(monkeypatch):
    arguments = make((4, 3, 5, 5))
    compiled = run(*arguments, "leaky_relu")
    monkeypatch.setattr(kernels, "_kernels", None)
    assert not bn.kernels_available()
    for ours, torchs in zip(compiled, run(*arguments, "leaky_relu"), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("channels", "odd", "dtype"),
    [(48, 0, torch.float32), (24, 0, torch.float32), (24, 3, torch.float32), (192, 0, torch.bfloat16)],
    ids=["whole lines", "broken rows", "broken rows and maps", "wide rows, two at a time"],
)
def test_what_outgrows_the_last_cache_is_written_past_it_and_right(channels, odd, dtype, channels_last):
    images = 2
    values = kernels._kernels.last_level_cache() // dtype.itemsize + (1 << 18)
    if values > 1 << 25:
        pytest.skip("a last-level cache of more than 64 MB: this would take minutes")
    places = values // (images * channels) // 16 * 16 + odd
    x, weight, bias, dz = make((images, channels, places), dtype, channels_last)
    check_in_float64(x, weight, bias, dz)


def check_in_float64(x, weight, bias, dz):
    """As `check`, for tensors that are too large for numpy's oracle; and inference by the statistics found."""
    z, mean, var, dx, dweight, dbias = run(x, weight, bias, dz, "relu")
    inferred = functional.normalize(x, mean, var, weight, bias, 1e-5, "relu")
    wide = [t.double().requires_grad_() for t in (x, weight, bias)]
    y = F.batch_norm(wide[0], None, None, wide[1], wide[2], training=True, eps=1e-5)
    gradients = torch.autograd.grad(torch.relu(y), wide, dz.double())
    near = {"rtol": 0 if x.dtype == torch.float32 else TOLERANCE[x.dtype], "atol": 1e-5}
    torch.testing.assert_close(z.double(), torch.relu(y), **near)
    by_statistics = F.batch_norm(wide[0], mean.double(), var.double(), *wide[1:])
    torch.testing.assert_close(inferred.double(), torch.relu(by_statistics), **near)
    kink = y.abs() < 1e-5
    torch.testing.assert_close(dx.double().masked_fill(kink, 0), gradients[0].masked_fill(kink, 0), **near)
    torch.testing.assert_close(mean.double(), wide[0].mean((0, 2)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(var.double(), wide[0].var((0, 2)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(dweight.double(), gradients[1], rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(dbias.double(), gradients[2], rtol=1e-4, atol=1e-2)


def test_the_last_level_cache_is_what_linux_tells():
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    if not sizes:
        pytest.skip("no cache sizes under /sys")
    assert kernels._kernels.last_level_cache() == max(int(size[:-1]) << {"K": 10, "M": 20}[size[-1]] for size in sizes)


@pytest.mark.parametrize("start", [torch.tensor(4), torch.tensor(4.0), torch.tensor(4, dtype=torch.int32)], ids=str)
def test_batches_are_counted_in_whatever_type_the_count_came(start):
    layer = bn.BatchNorm1d(3)
    layer.num_batches_tracked = start.clone()
    layer(torch.randn(8, 3))
    assert layer.num_batches_tracked == 5
    assert layer.num_batches_tracked.dtype == start.dtype


def test_a_batch_that_is_not_finite_is_not_counted_by_the_kernel():
    layer = bn.BatchNorm1d(3)
    with pytest.warns(RuntimeWarning, match="left out"):
        layer(torch.full((8, 3), torch.inf))
    assert layer.num_batches_tracked == 0
