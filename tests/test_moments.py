"""Tests of `Moments` against the float64 oracle, and cases where other estimators fail."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import reference

import batchnorm as bn
from batchnorm import Moments


@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 2), (5, 3, 2, 4), (2, 3, 2, 2, 2)])
def test_from_batch_is_the_oracles(shape):
    x = 2 + torch.randn(shape, generator=torch.Generator().manual_seed(0))
    moments = Moments.from_batch(x)
    mean, var = reference.population(x.numpy())
    assert moments.count == x.numel() // 3
    np.testing.assert_allclose(moments.mean.numpy(), mean, rtol=1e-12)
    np.testing.assert_allclose(moments.var(unbiased=True).numpy(), var, rtol=1e-12)
    np.testing.assert_allclose(moments.var(unbiased=False).numpy(), var * (1 - 1 / moments.count), rtol=1e-12)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_any_split_merges_to_the_whole(sizes, seed):
    whole = 1e3 + torch.randn(sum(sizes), 2, 3, generator=torch.Generator().manual_seed(seed))
    merged = Moments.from_batch(whole[:0])
    for part in whole.split(sizes):
        merged = merged.merge(Moments.from_batch(part))
    wanted = Moments.from_batch(whole)
    assert merged.count == wanted.count
    torch.testing.assert_close(merged.mean, wanted.mean, rtol=1e-12, atol=0)
    # The mean is 1000 times the deviation, so subtracting it loses 3 of float64's 16 digits.
    torch.testing.assert_close(merged.m2, wanted.m2, rtol=1e-9, atol=1e-9)


def test_the_spread_between_means_counts():
    # timm's distribute_bn averages the variances, which gives 0 here.
    low, high = Moments.from_batch(torch.zeros(4, 1)), Moments.from_batch(torch.full((4, 1), 10.0))
    assert low.merge(high).var(unbiased=False).item() == 25.0


def test_counts_weigh():
    # Flax's masked synchronization weighs all devices equally.
    merged = Moments.from_batch(torch.zeros(9, 1)).merge(Moments.from_batch(torch.ones(1, 1)))
    assert merged.mean.item() == pytest.approx(0.1, abs=1e-15)


def test_variance_is_not_lost_beside_a_large_mean():
    # fvcore's E[x^2] - E[x]^2 in float32 is negative here.
    x = 300 + 0.05 * torch.randn(10_000, 1, generator=torch.Generator().manual_seed(0))
    assert Moments.from_batch(x).var(unbiased=True).sqrt().item() == pytest.approx(0.05, rel=0.03)


def test_bfloat16_batches_keep_the_mean():
    # A bfloat16 running mean stops at 96.
    moments = Moments.from_batch(torch.full((64, 1), 100.0, dtype=torch.bfloat16))
    for _ in range(10):
        moments = moments.merge(moments)
    assert moments.mean.item() == 100.0
    assert moments.mean.dtype == torch.float64


def test_statistics_carry_no_gradient():
    assert not Moments.from_batch(torch.randn(4, 2, requires_grad=True)).mean.requires_grad


@pytest.mark.parametrize(("rows", "unbiased"), [(0, False), (0, True), (1, True)])
def test_too_few_values_are_refused(rows, unbiased):
    with pytest.raises(
        bn.BatchNormError, match=f"at least {1 + unbiased} values per channel; these Moments hold {rows}"
    ):
        Moments.from_batch(torch.zeros(rows, 2)).var(unbiased=unbiased)


def test_different_channels_do_not_merge():
    with pytest.raises(bn.BatchNormError, match="Moments of 2 and 3 channels"):
        Moments.from_batch(torch.zeros(4, 2)).merge(Moments.from_batch(torch.zeros(4, 3)))


@pytest.mark.parametrize("x", [torch.zeros(4), torch.zeros(4, 2, dtype=torch.long)])
def test_what_is_not_a_batch_of_activations_is_refused(x):
    with pytest.raises(bn.BatchNormError, match=f"got {x.dtype} of shape"):
        Moments.from_batch(x)
