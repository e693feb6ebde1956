"""Make tensors for the compiled kernels, and compare their results with the float64 oracle in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from batchnorm.kernels import bindings, dispatch
from batchnorm.kernels.activation import Transform
from support import reference

SLOPE = 0.1
# float32: a few roundings of values near 1. bfloat16: half a unit in the last of its 8 bits.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-8}
# Where the slope of an activation jumps.
KINKS = {"relu": (0,), "leaky_relu": (0,), "relu6": (0, 6), "hardswish": (-3, 3)}
VIEWS = {
    "batch slice": lambda x: x[1:5],
    "channel slice": lambda x: x[:, 1:4],
    "strided": lambda x: x[..., ::2],
    "transposed": lambda x: x.transpose(2, 3),
    "flipped axes": lambda x: x.permute(3, 1, 2, 0),
    "expanded": lambda x: x[:1].expand(5, -1, -1, -1),
    "offset": lambda x: x.flatten()[3 : 3 + 4 * 6 * 5].view(4, 6, 5),
}
# The `pytestmark` of a test file that needs the kernels, for small tensors in inference too.
by_the_kernels = [
    pytest.mark.skipif(bindings.kernel_target() is None, reason="built without the compiled kernels"),
    pytest.mark.usefixtures("small_tensors_too"),
]


def to_numpy(t):
    return t.detach().double().numpy()


def make(shape, dtype=torch.float32, channels_last=False, seed=0):
    """Return x, weight, bias and dz, with x and dz in the given layout."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=rng) * 2 + 3
    dz = torch.randn(shape, generator=rng)
    weight = torch.rand(shape[1], generator=rng) + 0.5
    bias = torch.randn(shape[1], generator=rng)
    layout = (lambda t: t.movedim(1, -1).contiguous().movedim(-1, 1)) if channels_last else (lambda t: t)
    return layout(x.to(dtype)), weight, bias, layout(dz.to(dtype))


def run(x, weight, bias, dz, activation, eps=1e-5, residual=None):
    """Return (z, mean, unbiased var, dx, dweight, dbias) of a training step, and dresidual if there is a residual."""
    x, weight, bias = (t.detach().clone().requires_grad_() for t in (x, weight, bias))
    residual = None if residual is None else residual.detach().clone().requires_grad_()
    z, mean, var = dispatch.normalize_by_batch(x, Transform(weight, bias, eps, activation, SLOPE, residual))
    inputs = (x, weight, bias) if residual is None else (x, weight, bias, residual)
    return z, mean, var, *torch.autograd.grad(z, inputs, dz)


def check(x, weight, bias, dz, activation, residual=None):
    """Compare a training step with the oracle."""
    found = run(x, weight, bias, dz, activation, residual=residual)
    arrays = to_numpy(x), to_numpy(weight), to_numpy(bias)
    added = 0.0 if residual is None else to_numpy(residual)
    forward = (*arrays, 1e-5)
    want = (
        reference.forward(*forward, activation, SLOPE, residual=added),
        *reference.population(arrays[0]),
        *reference.backward(to_numpy(dz), *forward, activation, SLOPE, added),
    )
    tolerance = TOLERANCE[x.dtype]
    # At a kink of g, float32 and float64 may be on different sides, and either gradient is right.
    y = reference.forward(*forward, residual=added)
    kink = np.any([np.abs(y - at) < 1e-4 for at in KINKS.get(activation, ())], 0) & np.ones(y.shape, bool)
    count = max(1, x.numel() // x.shape[1])
    names = ("z", "mean", "var", "dx", "dweight", "dbias", "dresidual")
    for name, got, expected in zip(names, found, want, strict=False):
        relative = 2e-6 if name in ("mean", "var") else tolerance
        # The error of a sum scales with its terms. A value at the kink may be missing from it.
        absolute = relative * (1 + np.abs(expected).max())
        if name == "dx":  # its three terms may cancel: with two values per channel to 0
            absolute *= 1 + np.abs(arrays[1] / np.sqrt(want[2] + 1e-5)).max() * np.abs(to_numpy(dz)).max()
        if name in ("dweight", "dbias"):
            absolute = 4e-6 * np.sqrt(count) + kink.sum() * 10
        error = np.abs(to_numpy(got) - expected)
        allowed = absolute + relative * np.abs(expected)
        if name in ("dx", "dresidual"):
            allowed = np.where(kink, np.inf, allowed + kink.sum() * 20 / count)
        assert got.shape == expected.shape
        assert (error <= allowed).all(), f"{name}: off by {np.max(error - allowed)} more than allowed"
