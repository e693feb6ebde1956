"""Test the compiled kernels in inference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import reference
from support.kernel_cases import SLOPE, TOLERANCE, VIEWS, by_the_kernels, make, to_numpy

from batchnorm.kernels import dispatch
from batchnorm.kernels.activation import Transform

pytestmark = by_the_kernels


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu", "sigmoid"])
@pytest.mark.parametrize("shape", [(3, 5, 7, 3), (2, 64, 6, 6), (1, 1025, 1, 1), (0, 3, 2, 2)], ids=str)
def test_inference_values(shape, activation, dtype, channels_last):
    x, weight, bias, _ = make(shape, dtype, channels_last)
    mean, var = torch.linspace(2, 4, shape[1]), torch.linspace(0.5, 5, shape[1])
    z = dispatch.normalize(x, mean, var, Transform(weight, bias, 1e-5, activation, SLOPE))
    arrays = to_numpy(x), to_numpy(weight), to_numpy(bias)
    want = reference.forward(*arrays, 1e-5, activation, SLOPE, to_numpy(mean), to_numpy(var))
    # The sigmoid is a torch operation after the kernel, so y, which is below 8, is rounded once more.
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
        z = dispatch.normalize(x, mean, var, Transform(weight, bias, 1e-5, "relu"))
    finally:
        torch.set_num_threads(before)
    want = want_of_torch(x, mean, var, weight, bias)
    torch.testing.assert_close(z.double(), want, rtol=2 * TOLERANCE[dtype], atol=4e-6)


def want_of_torch(x, mean, var, weight, bias):
    wide = (t.double() for t in (mean, var, weight, bias))
    return torch.relu(F.batch_norm(x.double(), *wide))


@pytest.mark.parametrize("channels", [7, 19, 135, 168, 200, 1001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("places", [(), (7,), (4, 5)], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_inf_nan_and_denormals_come_out_as_torchs_and_where_they_went_in(channels, dtype, places, channels_last):
    x, weight, bias, _ = make((5, channels, *places), dtype, channels_last and bool(places))
    mean, var = torch.zeros(channels), torch.ones(channels)
    for n, value in enumerate((torch.inf, -torch.inf, torch.nan, 1e-40)):
        x[n, -1 - 3 * n % channels] = value
    z = dispatch.normalize(x, mean, var, Transform(weight, bias, 1e-5, "relu"))
    want = want_of_torch(x, mean, var, weight, bias)
    torch.testing.assert_close(z.double(), want, rtol=2 * TOLERANCE[dtype], atol=4e-6, equal_nan=True)


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_any_strides_give_the_right_result(view, dtype, channels_last):
    x, *_ = make((6, 6, 8, 8), dtype, channels_last)
    x = view(x.contiguous() if view is VIEWS["offset"] else x)
    _, weight, bias, _ = make(tuple(x.shape))
    mean, var = torch.linspace(2, 4, x.shape[1]), torch.linspace(0.5, 5, x.shape[1])
    z = dispatch.normalize(x, mean, var, Transform(weight, bias, 1e-5, "relu"))
    torch.testing.assert_close(
        z.double(), want_of_torch(x, mean, var, weight, bias), rtol=2 * TOLERANCE[dtype], atol=4e-6
    )
