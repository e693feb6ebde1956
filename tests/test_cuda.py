"""Test the layers and Algorithm 2 on a CUDA device, where torch's operations and the Triton kernel run."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.kernel_cases import KINKS
from torch import nn

import batchnorm as bn
from batchnorm.kernels import device, fallback
from batchnorm.kernels.bindings import Running

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

SHAPE = (6, 16, 9, 7)
FUNCTIONS = {
    None: lambda y: y,
    "relu": F.relu,
    "leaky_relu": lambda y: F.leaky_relu(y, 0.1),
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "gelu": F.gelu,
    "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"),
}
# Of values near 1: a few roundings of float32; a few units in the last of bfloat16's 8 bits, with the gradient's terms.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2**-5}


def tensors(dtype: torch.dtype, channels_last: bool) -> list[torch.Tensor]:
    """Return x, a residual and dz on the device."""
    rng = torch.Generator().manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    made = (torch.randn(SHAPE, generator=rng) + mean for mean in (3.0, 0.0, 0.0))
    return [t.to("cuda", dtype, memory_format=layout) for t in made]


@pytest.mark.parametrize("added", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("activation", FUNCTIONS, ids=str)
def test_a_step_agrees_with_torch_in_float64(activation: Any, dtype, channels_last, added):
    x, residual, dz = tensors(dtype, channels_last)
    layer = bn.BatchNorm2d(SHAPE[1], activation=activation, negative_slope=0.1, device="cuda")
    oracle = nn.BatchNorm2d(SHAPE[1], dtype=torch.float64)
    ours = [t.requires_grad_() for t in (x, residual)[: 1 + added]]
    theirs = [t.detach().cpu().double().requires_grad_() for t in ours]
    z = layer(*ours)
    y = oracle(theirs[0])
    y = y + theirs[1] if added else y
    want = FUNCTIONS[activation](y)
    close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype], "check_dtype": False}
    torch.testing.assert_close(z.cpu(), want, **close)
    # Near a kink of the activation, the two may be on different sides, and either gradient is right.
    for at in KINKS.get(activation, ()):
        dz[(y - at).abs().cuda() < TOLERANCE[dtype]] = 0
    found = torch.autograd.grad(z, (*ours, layer.weight, layer.bias), dz)
    expected = torch.autograd.grad(want, (*theirs, oracle.weight, oracle.bias), dz.cpu().double())
    for got, exact in zip(found, expected, strict=True):
        scale = float(exact.abs().max())
        torch.testing.assert_close(got.cpu() / scale, exact / scale, **close)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(
            getattr(layer, name).cpu(), getattr(oracle, name), rtol=1e-5, atol=1e-5, check_dtype=False
        )


# The prototype reports what this test forbids.
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
def test_the_triton_kernel_leaves_a_bad_batch_out_and_the_host_does_not_wait():
    layer = bn.BatchNorm2d(SHAPE[1], device="cuda")
    x = tensors(torch.float32, False)[0]
    bad = x.clone()
    bad[0, 3, 0, 0] = torch.inf
    layer(x)
    before = copy.deepcopy(layer.state_dict())
    try:
        torch.cuda.set_sync_debug_mode("error")
        layer(bad)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_one_compiled_kernel_serves_all_values_and_addresses(dtype, counted):
    for channels, momentum, eps in ((16, 0.1, 1e-5), (9, 1.0, 1), (1, 0.75, 1e-3), (16, 0.0, 1e-5)):
        mean, var = torch.randn(channels, device="cuda"), torch.rand(channels, device="cuda") + 0.1
        old_mean, old_var = (torch.randn(channels, device="cuda", dtype=dtype) for _ in range(2))
        count = torch.tensor(5, device="cuda") if counted else None
        unaligned = torch.empty(channels + 1, device="cuda", dtype=dtype)[1:]  # to 16 bytes
        ours = Running(unaligned.copy_(old_mean), old_var.clone(), momentum, count)
        device.launch(ours, mean, (var + eps).rsqrt(), eps, 9)
        fallback.update_on_device(old_mean, old_var, mean, var * 9 / 8, momentum)
        torch.testing.assert_close((ours.mean, ours.var), (old_mean, old_var), rtol=1e-5, atol=1e-5)
        assert count is None or count == 6


def launches(layer: nn.Module, x: torch.Tensor) -> list[str]:
    layer(x)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as profile:
        layer(x)
        torch.cuda.synchronize()
    events: Any = profile.events()
    return [event.name for event in events if event.device_type.name == "CUDA"]


def test_a_layer_launches_at_most_two_kernels_more_than_torchs():
    x = tensors(torch.float32, False)[0]
    ours, theirs = (launches(kind(SHAPE[1], device="cuda"), x) for kind in (bn.BatchNorm2d, nn.BatchNorm2d))
    assert theirs
    assert len(ours) <= len(theirs) + 2, (ours, theirs)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is:DeprecationWarning")  # torch's compiler meets it
def test_compile_fullgraph_agrees_with_eager():
    x, residual, _ = tensors(torch.float32, False)
    eager = bn.BatchNorm2d(SHAPE[1], activation="silu", device="cuda")
    compiled = copy.deepcopy(eager)
    want, found = eager(x, residual), torch.compile(compiled, fullgraph=True)(x, residual)
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(compiled.state_dict(), eager.state_dict(), rtol=1e-5, atol=1e-5)


def test_a_captured_step_moves_the_statistics_at_each_replay():
    x = tensors(torch.float32, False)[0]
    layer, eager = (bn.BatchNorm2d(SHAPE[1], activation="relu", device="cuda") for _ in range(2))
    with torch.cuda.stream(torch.cuda.Stream()):
        layer(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        layer(x)
    for _ in range(3):
        graph.replay()
    for _ in range(4):  # the capture itself computes nothing
        eager(x)
    torch.testing.assert_close(layer.state_dict(), eager.state_dict(), rtol=1e-6, atol=1e-6)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
    )


def test_algorithm_2_agrees_with_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # 10 bits are too few to compare by
    batches = [torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    host, device = network(), network().cuda()
    bn.recalibrate(host, batches)
    bn.recalibrate(device, [batch.cuda() for batch in batches])
    for name, value in host.state_dict().items():
        torch.testing.assert_close(device.state_dict()[name].cpu(), value, rtol=1e-3, atol=1e-4)
    x = batches[0].cuda()
    with torch.no_grad():
        want = device.eval()(x)
        folded, fused = bn.fold(device, x), bn.fuse(device, x)
        torch.testing.assert_close(folded.model(x), want, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(fused.model(x), want, rtol=1e-3, atol=1e-4)
    assert (folded.folded, fused.fused) == (2, 1)
