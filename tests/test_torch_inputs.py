"""Run the test inputs that torch publishes for batch norm through this package."""

import warnings
from functools import partial
from typing import Any

import pytest
import torch

import batchnorm as bn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch's own test modules warn on import
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.common_modules import ModuleErrorEnum, module_db

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
OURS = {
    torch.nn.BatchNorm1d: bn.BatchNorm1d,
    torch.nn.BatchNorm2d: bn.BatchNorm2d,
    torch.nn.BatchNorm3d: bn.BatchNorm3d,
}
OP = next(op for op in op_db if op.name == "nn.functional.batch_norm")
MODULES = [info for info in module_db if info.module_cls in OURS]


def detached(values) -> list[Any]:
    return [value.detach().clone() if isinstance(value, torch.Tensor) else value for value in values]


def wide(value: Any) -> Any:
    return value.double() if isinstance(value, torch.Tensor) else value


def assert_close_for(dtype, found, wanted):
    """Compare with torch's default tolerance. In half precision allow two roundings of the largest value."""
    if dtype in (torch.float32, torch.float64):
        torch.testing.assert_close(found, wanted.to(dtype), equal_nan=True)
    else:
        bound = 2 * torch.finfo(dtype).eps * max(1.0, wanted.abs().nan_to_num().max().item()) if wanted.numel() else 0
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=bound, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_functional(dtype):
    samples = list(OP.sample_inputs("cpu", dtype))
    assert len(samples) > 5
    for sample in samples:
        ours = detached((sample.input, *sample.args))
        theirs = [wide(value) for value in detached((sample.input, *sample.args))]
        z = bn.functional.batch_norm(*ours, **sample.kwargs)
        assert z.dtype == dtype
        assert_close_for(dtype, z, torch.nn.functional.batch_norm(*theirs, **sample.kwargs))
        if sample.input.numel():  # after an empty batch torch's statistics are NaN, and ours are unchanged
            for found, wanted in zip(ours[1:3], theirs[1:3], strict=True):
                assert found is wanted is None or assert_close_for(dtype, found, wanted) is None


@pytest.mark.parametrize("dtype", [torch.float64])
def test_functional_gradients(dtype):
    for sample in OP.sample_inputs("cpu", dtype, requires_grad=True):
        if sample.input.numel():
            call = partial(bn.functional.batch_norm, **sample.kwargs)
            assert torch.autograd.gradcheck(call, (sample.input, *sample.args))
            assert torch.autograd.gradgradcheck(call, (sample.input, *sample.args))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("info", MODULES, ids=lambda info: info.name)
def test_modules(info, dtype, training):
    for case in info.module_inputs_func(info, "cpu", dtype, requires_grad=True, training=training):
        arguments, options = case.constructor_input.args, case.constructor_input.kwargs
        theirs = info.module_cls(*arguments, **options).train(training)
        ours = OURS[info.module_cls](*arguments, dtype=dtype, **options).train(training)
        (x,) = case.forward_input.args
        cotangent = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
        leaf, wide_leaf = x.detach().clone().requires_grad_(), x.detach().double().requires_grad_()
        z, wanted = ours(leaf), theirs.double()(wide_leaf)
        assert_close_for(dtype, z.detach(), wanted.detach())
        (gradient,) = torch.autograd.grad(z, leaf, cotangent)
        assert_close_for(dtype, gradient, torch.autograd.grad(wanted, wide_leaf, cotangent.double())[0])


@pytest.mark.parametrize("info", MODULES, ids=lambda info: info.name)
def test_module_errors(info):
    if info.module_error_inputs_func is None:
        pytest.skip(f"torch {torch.__version__} publishes no error inputs for {info.name}")
    cases = info.module_error_inputs_func(info, "cpu", torch.float32, requires_grad=False, training=True)
    assert cases
    for case in cases:
        assert case.error_on == ModuleErrorEnum.FORWARD_ERROR
        given = case.module_error_input
        layer = OURS[info.module_cls](*given.constructor_input.args, **given.constructor_input.kwargs)
        with pytest.raises(case.error_type, match=case.error_regex):
            layer(*given.forward_input.args)
