"""Test the properties of the transform that the paper states in Sec. 3 and 3.3, in float64."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from batchnorm.functional import batch_norm

seeds = st.integers(0, 2**31)
positive = st.floats(0.1, 10)


def draw(seed: int) -> tuple[Tensor, Tensor]:
    """Return u (32, 5) and W (3, 5)."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(32, 5, generator=generator, dtype=torch.float64),
        torch.randn(3, 5, generator=generator, dtype=torch.float64),
    )


def normalized(x, weight=None, bias=None, eps=1e-12):
    return batch_norm(x, None, None, weight, bias, training=True, eps=eps)


@given(seeds)
@settings(deadline=None)
def test_normalized_activations_have_mean_0_and_mean_square_1(seed):
    u, w = draw(seed)
    x_hat = normalized(u @ w.T)
    torch.testing.assert_close(x_hat.mean(0), torch.zeros(3).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(x_hat.square().mean(0), torch.ones(3).double(), rtol=0, atol=1e-9)


@given(seeds)
@settings(deadline=None)
def test_gamma_and_beta_can_restore_the_identity(seed):
    u, w = draw(seed)
    x, eps = u @ w.T, 1e-5
    gamma, beta = (x.var(0, correction=0) + eps).sqrt(), x.mean(0)
    torch.testing.assert_close(normalized(x, gamma, beta, eps), x, rtol=1e-10, atol=1e-10)


@given(seeds, positive)
@settings(deadline=None)
def test_the_scale_of_the_weights_does_not_matter(seed, a):
    u, w = draw(seed)
    torch.testing.assert_close(normalized(u @ (a * w).T), normalized(u @ w.T), rtol=1e-8, atol=1e-8)


@given(seeds, positive)
@settings(deadline=None)
def test_the_scale_of_the_weights_does_not_change_the_gradient_of_the_input(seed, a):
    gradients = []
    for scale in (a, 1.0):
        u, w = draw(seed)
        u.requires_grad_()
        gradients.append(torch.autograd.grad(normalized(u @ (scale * w).T).sin().sum(), u)[0])
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-7)


@given(seeds, positive)
@settings(deadline=None)
def test_larger_weights_have_smaller_gradients(seed, a):
    gradients = []
    for scale in (a, 1.0):
        u, w = draw(seed)
        scaled = (scale * w).requires_grad_()
        gradients.append(torch.autograd.grad(normalized(u @ scaled.T).sin().sum(), scaled)[0] * scale)
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-7)


@given(seeds)
@settings(deadline=None)
def test_a_bias_before_bn_is_cancelled(seed):
    u, w = draw(seed)
    torch.testing.assert_close(normalized(u @ w.T + torch.arange(3.0)), normalized(u @ w.T), rtol=1e-9, atol=1e-9)
