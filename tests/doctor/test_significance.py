"""The limits keep their promise on data without any fault, and approximations are near the exact laws."""

import math
from statistics import NormalDist

import pytest
import torch

from batchnorm.diagnosis.clusters import Clusters
from batchnorm.diagnosis.significance import FALSE_ALARMS, critical, z_of_f, z_of_t


@pytest.mark.parametrize(("t", "degrees"), [(6.0, 3), (2.0, 10), (3.5, 30), (8.0, 15)])
def test_wallace_is_near_the_exact_law(t, degrees):
    """The tail of Student's t, by the midpoint rule over the angle atan(t / sqrt(degrees)), gives the exact deviate."""
    start, parts = math.atan(t / math.sqrt(degrees)), 100_000
    step = (math.pi / 2 - start) / parts
    total = sum(math.cos(start + (part + 0.5) * step) ** (degrees - 1) for part in range(parts)) * step
    tail = math.gamma((degrees + 1) / 2) / math.gamma(degrees / 2) / math.sqrt(math.pi) * total
    z = z_of_t(torch.tensor([-t, t]), degrees).tolist()
    assert z == pytest.approx([NormalDist().inv_cdf(tail), -NormalDist().inv_cdf(tail)], rel=0.02)


@pytest.mark.parametrize(("between", "within"), [(3, 60), (7, 120), (1, 30)])
def test_the_deviate_of_f_is_normal_without_a_difference(between, within):
    """The median of 20,000 draws is 0, and a thousandth exceeds 3.09, within the noise of counting."""
    generator = torch.Generator().manual_seed(0)
    numerator = torch.randn(20_000, between, generator=generator, dtype=torch.float64).square().mean(1)
    denominator = torch.randn(20_000, within, generator=generator, dtype=torch.float64).square().mean(1)
    z = z_of_f(numerator / denominator, between, within)
    assert abs(z.median()) < 0.08
    assert (z > 3.09).sum() < 45  # expected 20, the approximation adds up to as many again


def test_the_limit_grows_slowly_with_the_number_of_tests():
    assert critical(1) == pytest.approx(3.2905, abs=1e-3)  # norm.isf(0.0005)
    assert critical(1000) == pytest.approx(4.8916, abs=1e-3)
    assert FALSE_ALARMS == 1e-3


def test_the_standard_error_is_that_of_examples_not_of_positions():
    generator = torch.Generator().manual_seed(1)
    means = torch.stack([torch.randn(40, 1, generator=generator) for _ in range(2000)]).double()
    errors, estimates = [], []
    for draw in means:
        clusters = Clusters.empty(torch.zeros(1)).add(draw[:20]).add(draw[20:])
        errors.append(clusters.standard_error())
        estimates.append(clusters.examples.mean)
    spread = torch.stack(estimates).std().item()
    assert spread == pytest.approx(1 / 40**0.5, rel=0.05)
    assert torch.stack(errors).mean().item() == pytest.approx(spread, rel=0.25)  # the design effect is 1 at least


def test_batches_that_differ_raise_the_standard_error():
    generator = torch.Generator().manual_seed(2)
    clusters = Clusters.empty(torch.zeros(1))
    for batch in range(8):
        clusters = clusters.add(torch.randn(32, 1, generator=generator).double() + 3 * (batch % 4))
    independent = (clusters.spread() / clusters.examples.count).sqrt()
    assert clusters.standard_error().item() > 3 * independent.item()
