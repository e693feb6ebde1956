"""Test the kernels on this machine: threads, instruction sets, caches."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.kernel_cases import TOLERANCE, by_the_kernels, make, run

import batchnorm as bn
from batchnorm.kernels import bindings, dispatch
from batchnorm.kernels.activation import Transform

pytestmark = by_the_kernels

THREADED = [(8, 40, 40, 40), (9, 1, 90, 90), (3, 1025, 6, 7), (200, 40, 3, 3), (4000, 3, 2, 2)]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", THREADED, ids=str)
def test_the_bits_are_the_same_for_any_number_of_threads(shape, dtype, channels_last):
    x, weight, bias, dz = make(shape, dtype, channels_last)

    def everything():
        # saved is float64: float32 may hide another order of summation.
        saved = bindings.forward(x, Transform(weight, bias, 1e-5, "relu", 0.0)).saved
        z, mean, var, *gradients = run(x, weight, bias, dz, "relu")
        return z, mean, var, *gradients, saved, dispatch.normalize(x, mean, var, Transform(weight, bias, 1e-5))

    torch.set_num_threads(1)
    one = everything()
    for count in (2, 3):
        torch.set_num_threads(count)
        for a, b in zip(one, everything(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_kernel_uses_torchs_number_of_threads(count, monkeypatch):
    asked = []

    class Compiled:
        def __getattr__(self, name):
            return lambda *fields: (asked.append(fields[6]), getattr(compiled, name)(*fields))[1]

    compiled = bindings._kernels
    monkeypatch.setattr(bindings, "_kernels", Compiled())
    torch.set_num_threads(count)
    x, weight, bias, dz = make((8, 40, 4, 4))
    _, mean, var, *_ = run(x, weight, bias, dz, "relu")
    dispatch.normalize(x, mean, var, Transform(weight, bias, 1e-5))
    assert asked == [count] * 3  # forward, backward, inference


def test_threads_are_those_that_torch_already_runs():
    def count():
        return len(list(Path("/proc/self/task").iterdir()))

    if not Path("/proc/self/task").exists():
        pytest.skip("counts threads in /proc")
    assert bindings._kernels.has_pool()
    torch.set_num_threads(2)
    x, weight, bias, dz = make((8, 40, 40, 40))
    x.exp()  # starts torch's pool for this thread
    before = count()
    run(x, weight, bias, dz, "relu")
    assert count() == before


def test_threads_of_python_may_call_at_once():
    arguments = make((8, 40, 40, 40))
    want = run(*arguments, "relu")
    results = []
    workers = [threading.Thread(target=lambda: results.append(run(*arguments, "relu"))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 4
    assert all(torch.equal(a, b) for result in results for a, b in zip(result, want, strict=True))


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="one instruction set alone")
@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="the oracle is Linux's list")
@pytest.mark.skipif("BATCHNORM_TARGET" in os.environ, reason="another target was asked for")
def test_the_target_is_the_widest_that_linux_lists():
    flags = set(Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split())
    wider = {
        "x86-64-v3": {"avx2", "fma", "bmi1", "bmi2", "movbe", "f16c", "abm"},
        "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
        "x86-64-v4+bf16": {"avx512_bf16"},
    }
    want = "x86-64-v2"
    for target, needed in wider.items():
        if not needed <= flags:
            break
        want = target
    assert bn.kernel_target() == want


NARROW = """
import itertools, sys, torch, typing
from batchnorm.kernels import bindings, dispatch
from batchnorm.kernels.activation import Activation, Transform
torch.set_num_threads(1)
torch.manual_seed(0)
found = [bindings.kernel_target()]
dispatch.FEWEST_IN_INFERENCE = 1
ACTIVATIONS = None, *typing.get_args(Activation)
SHAPES = (5, 19, 7, 7), (3, 130, 5, 3), (2, 3, 1, 300), (2, 33, 16, 16)
DTYPES = torch.float32, torch.bfloat16
LAYOUTS = torch.contiguous_format, torch.channels_last
for shape, dtype, layout, activation in itertools.product(SHAPES, DTYPES, LAYOUTS, ACTIVATIONS):
    x, dz = (torch.randn(shape).to(dtype).contiguous(memory_format=layout) for _ in range(2))
    weight, bias = (torch.rand(shape[1]).requires_grad_() for _ in range(2))
    x.requires_grad_()
    z, mean, var = dispatch.normalize_by_batch(x, Transform(weight, bias, 1e-5, activation, 0.1))
    found += [z.detach(), mean, var, *torch.autograd.grad(z, (x, weight, bias), dz)]
    with torch.no_grad():
        found.append(dispatch.normalize(x, mean, var, Transform(weight, bias, 1e-5, activation, 0.1)))
torch.save(found, sys.argv[1])
"""


def on_target(target, path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "BATCHNORM_TARGET": target}
    subprocess.run([sys.executable, "-c", NARROW, str(path)], env=environment, check=True)
    return torch.load(path)


@pytest.mark.usefixtures("small_tensors_too")  # restores what NARROW sets
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="this architecture has one instruction set")
def test_every_instruction_set_gives_the_same_within_rounding(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path / "widest")])
    exec(NARROW, {})  # in this process, which has loaded the widest already
    widest, *want = torch.load(tmp_path / "widest")
    targets = ["x86-64-v2", "x86-64-v3", "x86-64-v4"]
    for target in [t for t in targets if t < widest]:
        name, *got = on_target(target, tmp_path / target)
        assert name == target
        for ours, other in zip(got, want, strict=True):
            tolerance = TOLERANCE[ours.dtype] * (2 if ours.dtype == torch.bfloat16 else 10)
            torch.testing.assert_close(ours, other, rtol=tolerance, atol=tolerance * (1 + float(other.abs().max())))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("channels", "odd", "dtype"),
    [(48, 0, torch.float32), (24, 0, torch.float32), (24, 3, torch.float32), (192, 0, torch.bfloat16)],
    ids=["whole lines", "broken rows", "broken rows and maps", "wide rows, two at a time"],
)
def test_streaming_stores_of_outputs_larger_than_the_cache_are_right(channels, odd, dtype, channels_last):
    images = 2
    values = bindings._kernels.last_level_cache() // dtype.itemsize + (1 << 18)
    if values > 1 << 25:
        pytest.skip("a last-level cache of more than 64 MB: this would take minutes")
    places = values // (images * channels) // 16 * 16 + odd
    x, weight, bias, dz = make((images, channels, places), dtype, channels_last)
    check_in_float64(x, weight, bias, dz)


def check_in_float64(x, weight, bias, dz):
    """Compare training and inference with torch in float64, for tensors that are too large for numpy's oracle."""
    z, mean, var, dx, dweight, dbias = run(x, weight, bias, dz, "relu")
    inferred = dispatch.normalize(x, mean, var, Transform(weight, bias, 1e-5, "relu"))
    wide = [t.double().requires_grad_() for t in (x, weight, bias)]
    y = F.batch_norm(wide[0], None, None, wide[1], wide[2], training=True, eps=1e-5)
    gradients = torch.autograd.grad(torch.relu(y), wide, dz.double())
    near = {"rtol": 0 if x.dtype == torch.float32 else TOLERANCE[x.dtype], "atol": 1e-5}
    torch.testing.assert_close(z.double(), torch.relu(y), **near)
    by_statistics = F.batch_norm(wide[0], mean.double(), var.double(), *wide[1:])
    torch.testing.assert_close(inferred.double(), torch.relu(by_statistics), **near)
    kink = y.abs() < 1e-5
    torch.testing.assert_close(dx.double().masked_fill(kink, 0), gradients[0].masked_fill(kink, 0), **near)
    torch.testing.assert_close(mean.double(), wide[0].mean((0, 2)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(var.double(), wide[0].var((0, 2)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(dweight.double(), gradients[1], rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(dbias.double(), gradients[2], rtol=1e-4, atol=1e-2)


def test_the_last_level_cache_is_the_largest_that_linux_reports():
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    if not sizes:
        pytest.skip("no cache sizes under /sys")
    assert bindings._kernels.last_level_cache() == max(int(size[:-1]) << {"K": 10, "M": 20}[size[-1]] for size in sizes)


def test_kernel_target_is_the_instruction_set_that_was_compiled():
    known = {"x86-64-v2", "x86-64-v3", "x86-64-v4", "x86-64-v4+bf16"}
    target = bn.kernel_target()
    assert target in known if platform.machine() in ("x86_64", "AMD64") else target == platform.machine()
