"""The compiled kernels against a float64 oracle in numpy, and their place beneath `batch_norm`."""

from __future__ import annotations

import copy
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import batchnorm as bn
from batchnorm import functional, kernels

SLOPE = 0.1
# float32: a handful of roundings of values near 1. bfloat16: half a unit in the last of its 8 bits.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-8}

needs_kernels = pytest.mark.skipif(not kernels.kernels_available(), reason="built without the compiled kernels")
pytestmark = needs_kernels


@pytest.fixture(autouse=True)
def _restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# ---- The oracle ----


def oracle(x, weight, bias, eps, activation, dz):
    """z, mean, unbiased var, dx, dweight, dbias in float64, for arrays with the channel on axis 1."""
    axes = (0, *range(2, x.ndim))
    m = x.size // x.shape[1]
    shape = (1, -1, *[1] * (x.ndim - 2))
    x, dz = x.astype(np.float64), dz.astype(np.float64)
    mean = x.mean(axes)
    centred = x - mean.reshape(shape)
    var = (centred**2).mean(axes)
    std = np.sqrt(var + eps)
    x_hat = centred / std.reshape(shape)
    y = weight.reshape(shape) * x_hat + bias.reshape(shape)
    slope = {None: 1.0, "relu": 0.0, "leaky_relu": SLOPE}[activation]
    z = np.where(y > 0, y, slope * y)
    g = np.where(y > 0, dz, slope * dz)
    dbias, dweight = g.sum(axes), (g * x_hat).sum(axes)
    mean_terms = (dbias.reshape(shape) + x_hat * dweight.reshape(shape)) / m
    dx = (weight / std).reshape(shape) * (g - mean_terms)
    unbiased = var * m / (m - 1) if m > 1 else np.full_like(var, np.nan)
    return z, mean, unbiased, dx, dweight, dbias, y


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
    """As `oracle`, by the public function's inner half, with gradients."""
    x, weight, bias = (t.detach().clone().requires_grad_() for t in (x, weight, bias))
    z, mean, var = functional.normalize_by_batch(x, weight, bias, eps, activation, SLOPE)
    return z, mean, var, *torch.autograd.grad(z, (x, weight, bias), dz)


def check(x, weight, bias, dz, activation, scale=1.0):
    z, mean, var, dx, dweight, dbias = run(x, weight, bias, dz, activation)
    arrays = [to_numpy(t) for t in (x, weight, bias)]
    want = oracle(*arrays, 1e-5, activation, to_numpy(dz))
    tolerance = TOLERANCE[x.dtype]
    # At the kink of g, float32 and float64 may stand on different sides: there either gradient is right.
    kink = (np.abs(want[6]) < 1e-4) & (activation is not None)
    count = max(1, x.numel() // x.shape[1])
    names = ("z", "mean", "var", "dx", "dweight", "dbias")
    for name, got, expected in zip(names, (z, mean, var, dx, dweight, dbias), want, strict=False):
        relative = 2e-6 if name in ("mean", "var") else tolerance * scale
        # A sum's own scale is that of its terms, and a value at the kink may be missing from it.
        absolute = relative * (1 + np.abs(np.nan_to_num(expected)).max())
        if name in ("dweight", "dbias"):
            absolute = 4e-6 * np.sqrt(count) + kink.sum() * 10
        error = np.abs(to_numpy(got) - expected)
        allowed = absolute + relative * np.abs(expected)
        if name == "dx":
            allowed = np.where(kink, np.inf, allowed + kink.sum() * 20 / count)
        assert got.shape == expected.shape
        assert (np.isnan(error) == np.isnan(expected)).all(), name
        assert not (error > allowed).any(), f"{name}: off by {np.nanmax(error - allowed)} more than allowed"


# ---- Values ----

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

    def test_large(self, channels_last, dtype, activation):
        check(*make((8, 48, 28, 29), dtype, channels_last), activation)


@pytest.mark.parametrize("shape", [(9, 4), (1, 4, 6), (3, 4, 2, 5), (2, 4, 3, 2, 2)], ids=str)
def test_any_number_of_axes(shape):
    check(*make(shape), "relu")


def test_a_value_per_place_is_normalised_across_the_batch():
    check(*make((4097, 3)), "relu")
