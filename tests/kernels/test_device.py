"""Test what runs on devices without our kernels: the number of operations, and the Triton kernel in its interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

import batchnorm as bn
from batchnorm.kernels import device
from batchnorm.kernels.bindings import Running

# They change a tensor's description, or allocate, and launch nothing.
NO_LAUNCH = {"select", "unbind", "empty", "empty_like", "empty_strided", "detach", "view", "promote_types"}


def launches(layer: nn.Module, x: torch.Tensor) -> list[str]:
    """Return the operations of one call in training that launch something."""
    layer(x)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
        layer(x)
    events: Any = profile.events()
    called = [event.name.rpartition("::")[2] for event in events if event.cpu_parent is None]
    return [name for name in called if name not in NO_LAUNCH]


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"track_running_stats": False}])
def test_a_layer_on_a_device_launches_at_most_two_operations_more_than_torchs(options):
    x = torch.randn(4, 8, 5, 5, device="meta")
    ours, theirs = (launches(kind(8, device="meta", **options), x) for kind in (bn.BatchNorm2d, nn.BatchNorm2d))
    assert "batch_norm" in theirs
    assert len(ours) <= len(theirs) + 2, (ours, theirs)


INTERPRETED = """
import torch
from batchnorm.kernels import device, fallback
from batchnorm.kernels.bindings import Running

EPS, VALUES = 1e-3, 9

for channels in (1, 16, 37):
    for dtype in (torch.float32, torch.float64):
        for momentum in (0.0, 0.1, 0.75, 1.0):
            for bad in (None, torch.inf, torch.nan):
                mean, var = torch.randn(channels), torch.rand(channels) + 0.1
                if bad is not None:
                    mean[-1] = bad
                found = []
                for by in ("triton", "torch"):
                    torch.manual_seed(0)
                    state = *torch.randn(2, channels, dtype=dtype), torch.tensor(5)
                    if by == "triton":
                        running = Running(*state[:2], momentum, state[2])
                        device.launch(running, mean, (var + EPS).rsqrt(), EPS, VALUES)
                    else:
                        finite = fallback.update_on_device(*state[:2], mean, var * VALUES / (VALUES - 1), momentum)
                        state[2].add_(finite)
                    found.append(state)
                assert found[0][2] == found[1][2] == (6 if bad is None else 5)
                for ours, theirs in zip(*found):
                    torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=2e-6)
flat = torch.ones(4), torch.full((4,), EPS).rsqrt()  # a variance of 0 does not become negative
running = Running(*torch.zeros(2, 4), 1.0)  # without a count
device.launch(running, *flat, EPS, VALUES)
assert (running.mean == 1).all() and (running.var >= 0).all() and (running.var < 1e-9).all()
device.launch(running, flat[0], torch.zeros(4), EPS, VALUES)  # a variance that overflowed
assert (running.var < 1e-9).all()
"""


def test_the_triton_kernel_moves_what_torchs_operations_move():
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_on_a_device_the_count_and_the_statistics_are_the_operators_work():
    layer = bn.BatchNorm2d(3, device="meta")
    before = layer.running_mean._version  # pyright: ignore[reportOptionalMemberAccess]
    layer(torch.randn(2, 3, 4, 4, device="meta"))
    assert layer.running_mean._version > before  # pyright: ignore[reportOptionalMemberAccess]


class Grid:
    """A kernel that remembers its launches; Triton's first launch returns what it compiled."""

    def __init__(self, returned=None):
        self.returned, self.launches = returned, []

    def __getitem__(self, grid):
        assert grid == (1, 1, 1)
        return self

    def __call__(self, *arguments):
        self.launches.append(arguments)
        return self.returned


def test_triton_compiles_once_for_all_values_and_again_for_another_type(monkeypatch):
    compiler = pytest.importorskip("triton.compiler")
    compiled = Grid()
    by_triton = Grid(compiled)
    monkeypatch.setattr(compiler, "CompiledKernel", Grid)
    monkeypatch.setattr(device, "_kernel", lambda: by_triton)
    monkeypatch.setattr(device, "_compiled", {})

    def launch(channels, dtype=torch.float32, momentum=0.1, count=True, eps=1e-5):
        mean, var = torch.zeros(2, channels, dtype=dtype)
        running = Running(mean, var, momentum, torch.tensor(0) if count else None)
        device.launch(running, torch.ones(channels), torch.ones(channels), eps, 9)
        return len(by_triton.launches), len(compiled.launches)

    assert launch(16) == (1, 0)
    assert launch(9, momentum=1.0, eps=1) == (1, 1)
    assert launch(17) == (2, 1)  # another block
    assert launch(16, dtype=torch.float64) == (3, 1)
    assert launch(16, count=False) == (4, 1)
    assert launch(1, count=False) == (4, 2)
    types = [[type(argument) for argument in arguments] for arguments in (by_triton.launches[0], compiled.launches[0])]
    assert types[0] == types[1]


COMPILED = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from batchnorm.kernels import device

kernel = device._kernel()
# `launch` gives the compiled kernel all values and addresses.
assert all(parameter.is_constexpr or parameter.do_not_specialize for parameter in kernel.params)
for running in ("*fp32", "*fp64"):
    for counted in (True, False):
        numbers = ["fp32", "fp32", "fp32", "i32"]
        types = [running, running, "*i64" if counted else running, "*fp32", "*fp32", *numbers]
        signature = dict(zip(kernel.arg_names, (*types, "constexpr", "constexpr"), strict=True))
        source = ASTSource(kernel, signature, constexprs={"counted": counted, "block": 1024})
        assert "cubin" in compile(source, target=GPUTarget("cuda", 80, 32)).asm
"""


def test_the_triton_kernel_compiles_for_a_gpu(tmp_path):
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        (sys.executable, "-c", COMPILED), env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
