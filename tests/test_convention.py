"""Test every line of docs/convention.md with a number computed by hand."""

import re

import pytest
import torch
from support.paths import ROOT

import batchnorm as bn
from batchnorm.kernels import dispatch
from batchnorm.kernels.activation import Transform

DOC = ROOT / "docs" / "convention.md"
X = torch.tensor([[1.0], [3.0]])  # mean 2, biased variance 1, unbiased variance 2


def layer(**options):
    return bn.BatchNorm1d(1, **options)


def test_every_line_of_the_doc_names_a_test_that_exists():
    named = re.findall(r"\| `(test_\w+)` \|", DOC.read_text())
    assert len(named) == DOC.read_text().count("\n| ") - 1
    assert all(callable(globals().get(name)) for name in named)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (2, 3, 4, 5), (2, 3, 4, 5, 6)])
def test_axis_1_is_the_channel(shape):
    x = torch.arange(3.0).view(1, 3, *[1] * (len(shape) - 2)).expand(shape)
    mean, var = torch.zeros(3), torch.zeros(3)
    bn.functional.batch_norm(x, mean, var, training=True, momentum=1.0)
    assert mean.tolist() == [0, 1, 2]
    assert var.tolist() == [0, 0, 0]


def test_normalizing_uses_the_biased_variance():
    assert layer(eps=3.0)(X).tolist() == [[-0.5], [0.5]]  # ±1 / sqrt(1 + 3)


def test_running_variance_is_unbiased():
    norm = layer(momentum=1.0)
    norm(X)
    assert norm.get_buffer("running_var").item() == 2.0


def test_momentum_weighs_the_new_batch():
    norm = layer(momentum=0.25)
    norm(X)
    assert norm.get_buffer("running_mean").item() == 0.5  # 0.75 * 0 + 0.25 * 2
    assert norm.get_buffer("running_var").item() == 1.25  # 0.75 * 1 + 0.25 * 2


def test_momentum_none_is_the_cumulative_average():
    norm = layer(momentum=None)
    for shift in (0, 3, 6):
        norm(X + shift)
    assert norm.get_buffer("running_mean").item() == pytest.approx(5.0)
    assert norm.get_buffer("running_var").item() == pytest.approx(2.0)


def test_eps_is_inside_the_square_root():
    assert layer().eps == 1e-5
    assert layer(eps=8.0)(X)[1].item() == pytest.approx(1 / 3)  # 1 / sqrt(1 + 8); outside it would be 1 / 9


def test_initial_values():
    values = {name: value.item() for name, value in layer().state_dict().items()}
    assert values == {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1, "num_batches_tracked": 0}


def test_activation_comes_last():
    norm = layer(eps=3.0, activation="relu")
    torch.nn.init.constant_(norm.weight, -2.0)
    torch.nn.init.constant_(norm.bias, 0.5)
    assert norm(X).tolist() == [[1.5], [0.0]]  # relu(-2 * ∓0.5 + 0.5)


def test_negative_slope_default():
    assert layer(eps=3.0, activation="leaky_relu")(X)[0].item() == pytest.approx(-0.005)


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_statistics_are_float32_at_least(dtype, kept):
    assert layer().to(dtype).get_buffer("running_mean").dtype == kept
    _, mean, var = dispatch.normalize_by_batch(X.to(dtype), Transform(None, None, 1e-5))
    assert mean.dtype == var.dtype == kept


def test_moments_m2_is_a_sum():
    moments = bn.Moments.from_batch(X)
    assert (moments.count, moments.mean.item(), moments.m2.item()) == (2, 2.0, 2.0)
    assert moments.m2.dtype == torch.float64


@pytest.mark.filterwarnings("ignore:.*not finite:RuntimeWarning")
def test_a_batch_that_is_not_finite_does_not_count():
    norm = layer()
    norm(X * float("inf"))
    assert [buffer.item() for buffer in norm.buffers()] == [0, 1, 0]  # mean, variance, number of batches


def test_one_value_per_channel():
    with pytest.raises(bn.BatchNormError, match="more than 1 value per channel"):
        layer()(X[:1])
    assert layer(eps=3.0).eval()(X[:1]).item() == 0.5  # 1 / sqrt(1 + 3)


def test_an_empty_batch_changes_nothing():
    norm = layer()
    assert norm(X[:0]).shape == (0, 1)
    assert [buffer.item() for buffer in norm.buffers()] == [0, 1, 0]  # mean, variance, number of batches
