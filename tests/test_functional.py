"""Test Algorithm 1 and its gradient against the float64 oracle."""

from typing import Any

import numpy as np
import pytest
import torch
from support import reference

import batchnorm as bn
from batchnorm import functional
from batchnorm.functional import batch_norm
from batchnorm.kernels import bindings, dispatch
from batchnorm.kernels.bindings import Running

SHAPES = [(8, 3), (4, 3, 5), (4, 3, 5, 7), (2, 3, 4, 2, 3), (2, 1), (1, 2, 3)]
ACTIVATIONS = [None, "relu", "leaky_relu", "sigmoid"]
needs_kernels = pytest.mark.skipif(bn.kernel_target() is None, reason="built without the compiled kernels")


def draw(shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = 2 + 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    weight = torch.randn(shape[1], generator=generator, dtype=torch.float64)
    bias = torch.randn(shape[1], generator=generator, dtype=torch.float64)
    grad = torch.randn(shape, generator=generator, dtype=torch.float64)
    return tuple(t.to(dtype) for t in (x, weight, bias, grad))


# float64: another order of summation. float32: 24 bits, of which x - mean loses a few.
TOLERANCE: dict[torch.dtype, dict[str, Any]] = {
    torch.float64: {"rtol": 1e-9, "atol": 1e-10},
    torch.float32: {"rtol": 2e-5, "atol": 2e-5},
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_training_output_is_the_oracles(shape, activation, dtype):
    x, weight, bias, _ = draw(shape, dtype)
    z = batch_norm(x, None, None, weight, bias, training=True, activation=activation)
    wanted = reference.forward(x.numpy(), weight.numpy(), bias.numpy(), activation=activation)
    np.testing.assert_allclose(z.numpy(), wanted, **TOLERANCE[dtype])
    assert z.dtype == dtype


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != (2, 1)])  # there dx is 0
def test_gradients_are_the_oracles(shape, activation, dtype):
    x, weight, bias, grad = draw(shape, dtype)
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    batch_norm(leaves[0], None, None, leaves[1], leaves[2], training=True, activation=activation).backward(grad)
    wanted = reference.backward(grad.numpy(), x.numpy(), weight.numpy(), bias.numpy(), activation=activation)
    for leaf, gradient in zip(leaves, wanted[:3], strict=True):
        assert leaf.grad is not None
        np.testing.assert_allclose(leaf.grad.numpy(), gradient, **TOLERANCE[dtype])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_inference_uses_the_running_statistics(activation):
    x, weight, bias, _ = draw((4, 3, 5, 7))
    mean, var = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([0.5, 2.0, 9.0]).double()
    z = batch_norm(x, mean, var, weight, bias, training=False, activation=activation)
    wanted = reference.forward(
        x.numpy(), weight.numpy(), bias.numpy(), activation=activation, mean=mean.numpy(), var=var.numpy()
    )
    np.testing.assert_allclose(z.numpy(), wanted, **TOLERANCE[torch.float64])


def test_negative_slope_is_used():
    x = torch.tensor([[-1.0], [1.0]])
    z = batch_norm(x, None, None, training=True, eps=1e-12, activation="leaky_relu", negative_slope=0.25)
    torch.testing.assert_close(z, torch.tensor([[-0.25], [1.0]]))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_double_backward(activation):
    x, weight, bias, _ = (t.requires_grad_() for t in draw((4, 2, 3), seed=3))

    def f(x, weight, bias):
        return batch_norm(x, None, None, weight, bias, training=True, activation=activation)

    assert torch.autograd.gradcheck(f, (x, weight, bias))
    assert torch.autograd.gradgradcheck(f, (x, weight, bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["kernel", "torch"])
def test_double_backward_beside_a_residual_without_gradient(dtype):
    x, weight, bias, dz = (t.to(dtype) for t in draw((4, 2, 3), seed=3))
    x.requires_grad_()
    residual = torch.ones_like(x)
    z = batch_norm(x, None, None, weight, bias, training=True, activation="sigmoid", residual=residual)
    (dx,) = torch.autograd.grad(z, x, dz, create_graph=True)
    (twice,) = torch.autograd.grad(dx.square().sum(), x)

    def expected(x):
        mean, var = x.mean((0, 2), keepdim=True), x.var((0, 2), correction=0, keepdim=True)
        y = (x - mean) / (var + 1e-5).sqrt() * weight[:, None] + bias[:, None] + residual.double()
        return torch.autograd.grad(torch.sigmoid(y), x, dz.double(), create_graph=True)[0].square().sum()

    wide = x.detach().double().requires_grad_()
    (wanted,) = torch.autograd.grad(expected(wide), wide)
    torch.testing.assert_close(twice.double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("momentum", [0.1, 1.0, 0.0, -0.5])
def test_running_statistics_move_by_momentum_toward_the_batch(momentum):
    x, *_ = draw((6, 3, 4))
    running_mean, running_var = torch.full((3,), 5.0).double(), torch.full((3,), 7.0).double()
    batch_norm(x, running_mean, running_var, training=True, momentum=momentum)
    mean, var = reference.population(x.numpy())
    np.testing.assert_allclose(running_mean.numpy(), (1 - momentum) * 5.0 + momentum * mean, rtol=1e-12)
    np.testing.assert_allclose(running_var.numpy(), (1 - momentum) * 7.0 + momentum * var, rtol=1e-12)


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_a_batch_that_is_not_finite_leaves_running_statistics_alone(bad):
    x, *_ = draw((6, 3, 4))
    x[2, 1, 0] = bad
    running_mean, running_var = torch.arange(3.0).double(), torch.ones(3).double()
    batch_norm(x, running_mean, running_var, training=True)
    assert running_mean.tolist() == [0, 1, 2]
    assert running_var.tolist() == [1, 1, 1]


def test_statistics_whose_sum_overflows_are_still_finite():
    running_mean, running_var = torch.zeros(4), torch.ones(4)
    mean = torch.full((4,), 2e38)
    assert dispatch.update_running(Running(running_mean, running_var, 1.0), mean, torch.ones(4))
    assert torch.equal(running_mean, mean)


def test_traced_update_agrees_with_the_eager_one():
    eager, traced = [(torch.arange(3.0), torch.ones(3)) for _ in range(2)]
    compiled = torch.compile(dispatch.update_running, fullgraph=True, backend="aot_eager")
    for batch in (torch.tensor([4.0, 5.0, 6.0]), torch.tensor([1.0, float("nan"), 3.0])):
        finite = dispatch.update_running(Running(*eager, 0.25), batch, batch)
        assert bool(compiled(Running(*traced, 0.25), batch, batch)) == finite
    torch.testing.assert_close(traced, eager, rtol=0, atol=0)


def test_one_inf_then_clean_batches_ends_at_the_truth():
    # torch's running statistics are NaN or inf forever after such a batch.
    running_mean, running_var = torch.zeros(2), torch.ones(2)
    generator = torch.Generator().manual_seed(0)
    for step in range(50):
        x = 3 + 2 * torch.randn(256, 2, generator=generator)
        if step == 0:
            x[0, 0] = float("inf")
        batch_norm(x, running_mean, running_var, training=True)
    # After 49 steps at momentum 0.1 the start weighs 0.6 %; a batch of 256 has a mean within 0.13 of 3.
    torch.testing.assert_close(running_mean, torch.full((2,), 3.0), rtol=0, atol=0.15)
    torch.testing.assert_close(running_var, torch.full((2,), 4.0), rtol=0, atol=0.4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input_has_float32_statistics(dtype):
    x, weight, bias, _ = draw((16, 3, 8))
    running_mean, running_var = torch.zeros(3), torch.zeros(3)
    z = batch_norm(x.to(dtype), running_mean, running_var, weight.to(dtype), bias.to(dtype), True, 1.0)
    mean, var = reference.population(x.to(dtype).double().numpy())
    assert z.dtype == dtype
    np.testing.assert_allclose(running_mean.numpy(), mean, rtol=1e-5)
    np.testing.assert_allclose(running_var.numpy(), var, rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1), (1, 3, 1, 1)])
def test_one_value_per_channel_says_what_came_and_what_to_do(shape):
    with pytest.raises(bn.BatchNormError, match=r"more than 1 value per channel.*\(1, 3.*larger batch.*\.eval\(\)"):
        batch_norm(torch.zeros(shape), None, None, training=True)


def test_an_empty_batch_gives_an_empty_output():
    assert batch_norm(torch.empty(0, 3, 4), None, None, training=True).shape == (0, 3, 4)


@pytest.mark.parametrize("training", [True, False])
def test_an_unknown_activation_is_named(training):
    name: Any = "tanh"
    with pytest.raises(bn.BatchNormError, match=r"'relu', 'leaky_relu', 'relu6', .*'gelu_tanh'; got 'tanh'"):
        batch_norm(torch.zeros(2, 3), None, None, training=training, activation=name)


def test_inference_without_statistics_is_refused():
    with pytest.raises(bn.BatchNormError, match="wants running_mean and running_var"):
        batch_norm(torch.zeros(2, 3), None, None)


@pytest.mark.parametrize("training", [True, False])
def test_one_running_statistic_alone_is_refused(training):
    with pytest.raises(bn.BatchNormError, match="got only running_mean"):
        batch_norm(torch.zeros(2, 3), torch.zeros(3), None, training=training)


@pytest.mark.parametrize("eps", [0.0, -1.0])
def test_eps_must_be_positive_in_training(eps):
    with pytest.raises(bn.BatchNormError, match=f"eps must be positive during training, but got {eps}"):
        batch_norm(torch.randn(4, 3), None, None, training=True, eps=eps)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("x", "statistics", "message"),
    [
        (torch.randn(4, 3), torch.ones(5), "running_mean should contain 3 elements not 5"),
        (torch.randn(4, 3), torch.ones(4, 3), "running_mean should contain 3 elements not 12"),
        (torch.randn(4), torch.ones(4), "running_mean should contain 0 elements not 4"),
    ],
)
def test_running_statistics_of_another_size_get_torchs_error(x, statistics, message, training):
    before = statistics.clone()
    with pytest.raises(RuntimeError, match=message):
        batch_norm(x, statistics, statistics.clone(), training=training)
    assert torch.equal(statistics, before)


def test_only_layers_average_cumulatively():
    missing: Any = None
    with pytest.raises(bn.BatchNormError, match="wants a number for momentum; got None"):
        batch_norm(torch.randn(4, 3), torch.zeros(3), torch.ones(3), training=True, momentum=missing)


def test_running_statistics_are_no_parameters():
    with pytest.raises(bn.BatchNormError, match="running statistics are no parameters"):
        batch_norm(torch.randn(4, 3), torch.zeros(3, requires_grad=True), torch.ones(3), training=True)


def test_a_negative_slope_below_zero_has_a_gradient():
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)

    def f(x):
        return batch_norm(x, None, None, training=True, activation="leaky_relu", negative_slope=-0.3)

    assert torch.autograd.gradcheck(f, x)


def test_memory_format_is_kept():
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    for training in (True, False):
        z = batch_norm(x, torch.zeros(3), torch.ones(3), training=training, activation="relu")
        assert z.is_contiguous(memory_format=torch.channels_last)


def test_the_input_is_never_written():
    x = torch.randn(4, 3)
    before = x.clone()
    for training in (True, False):
        batch_norm(x, torch.zeros(3), torch.ones(3), training=training, activation="relu")
    assert torch.equal(x, before)


@needs_kernels
@pytest.mark.parametrize("places", [2, 100_000])
def test_the_kernel_runs_batches_of_any_size_in_training(places):
    z = batch_norm(torch.randn(places, 1, requires_grad=True), None, None, training=True)
    assert "NormalizeByBatch" in type(z.grad_fn).__name__


@needs_kernels
@pytest.mark.parametrize(
    ("places", "kernel"), [(dispatch.FEWEST_IN_INFERENCE - 1, False), (dispatch.FEWEST_IN_INFERENCE, True)]
)
def test_small_tensors_run_in_torch_in_inference(places, kernel, monkeypatch):
    called = []
    monkeypatch.setattr(bindings, "inference", lambda x, *_: called.append(True) or x)
    batch_norm(torch.randn(places, 1), torch.zeros(1), torch.ones(1))
    assert bool(called) is kernel


def test_the_module_exposes_batch_norm_alone():
    own = [name for name, value in vars(functional).items() if getattr(value, "__module__", "") == functional.__name__]
    assert functional.__all__ == own == ["batch_norm"]
