"""Test virtual ("ghost") batches against the numpy oracle, group by group."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from support import reference
from support.kernel_cases import to_numpy
from torch.testing import assert_close

import batchnorm as bn

SHAPES = [(10, 3), (7, 3, 5), (9, 4, 6, 6), (9, 16, 3, 3)]


def groups(n, size):
    """Return the slices of the groups: a short last one is part of the one before it."""
    starts = list(range(0, n, size))
    if n % size and len(starts) > 1:
        starts.pop()
    return [slice(start, end) for start, end in zip(starts, [*starts[1:], n], strict=True)]


@pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("size", [2, 3, 4, 100])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_group_is_a_batch_of_its_own(shape, size, activation, dtype, channels_last):
    rng = torch.Generator().manual_seed(0)
    x, residual, dz = (torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype) for _ in range(3))
    if channels_last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    layer = {2: bn.BatchNorm1d, 3: bn.BatchNorm1d, 4: bn.BatchNorm2d}[len(shape)](
        shape[1], activation=activation, virtual_batch_size=size, dtype=dtype
    )
    torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
    inputs = (x.requires_grad_(), residual.requires_grad_(), layer.weight, layer.bias)
    z = layer(x, residual)
    found = torch.autograd.grad(z, inputs, dz)
    parts = groups(shape[0], size)
    arguments = (to_numpy(layer.weight), to_numpy(layer.bias), layer.eps, activation)
    tolerance = 1e-10 if dtype == torch.float64 else 2e-5  # roundings of sums of some hundred values near 1
    want = [reference.forward(to_numpy(x)[p], *arguments, residual=to_numpy(residual)[p]) for p in parts]
    np.testing.assert_allclose(to_numpy(z), np.concatenate(want), rtol=tolerance, atol=tolerance)
    steps = [
        reference.backward(to_numpy(dz)[p], to_numpy(x)[p], *arguments, residual=to_numpy(residual)[p]) for p in parts
    ]
    dx, dweight, dbias, dresidual = zip(*steps, strict=True)
    expected = (np.concatenate(dx), np.concatenate(dresidual), sum(dweight), sum(dbias))
    for got, exact in zip(found, expected, strict=True):
        np.testing.assert_allclose(to_numpy(got), exact, rtol=tolerance, atol=10 * tolerance)
    mean, var = reference.population(to_numpy(x))
    assert_close(to_numpy(layer.running_mean), 0.1 * mean, rtol=1e-5, atol=1e-6)
    assert_close(to_numpy(layer.running_var), 0.9 + 0.1 * var, rtol=1e-5, atol=1e-6)


def test_groups_of_one_value_are_refused():
    layer = bn.BatchNorm1d(3, virtual_batch_size=1)
    with pytest.raises(bn.BatchNormError, match="more than 1 value per channel"):
        layer(torch.randn(4, 3))
    assert layer(torch.randn(4, 3, 2)).shape == (4, 3, 2)


@pytest.mark.parametrize("size", [0, -1, 2.0, True])
def test_a_size_that_is_no_number_of_examples_is_refused(size):
    with pytest.raises(bn.BatchNormError, match=f"virtual_batch_size must be None or a number.*got {size}"):
        bn.BatchNorm1d(3, virtual_batch_size=size)


def test_in_eval_there_are_no_groups_and_a_copy_has_the_size():
    layer = bn.BatchNorm1d(3, virtual_batch_size=4)
    twin = copy.deepcopy(layer).eval()
    x = torch.randn(3, 3)
    assert_close(twin(x), bn.BatchNorm1d(3).eval()(x))
    assert twin.virtual_batch_size == 4
    assert "virtual_batch_size=4" in repr(twin)
    assert twin.state_dict().keys() == bn.BatchNorm1d(3).state_dict().keys()


def test_double_backward_is_that_of_the_groups():
    layer = bn.BatchNorm1d(2, virtual_batch_size=3)
    plain = bn.BatchNorm1d(2)
    x = torch.randn(6, 2, requires_grad=True)
    found = []
    for z in (layer(x), torch.cat([plain(part) for part in x.split(3)])):
        (dx,) = torch.autograd.grad(z.square().sum() + z.pow(3).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(dx.square().sum(), x)[0])
    assert_close(*found, rtol=1e-4, atol=1e-4)
