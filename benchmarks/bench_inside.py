"""Compare batch normalization inside a network with the same calls alone.

    python benchmarks/bench_inside.py resnet50 --layout NHWC --out records/networks/inside-NHWC.json

Every call of BN and its activation is timed, in the forward and the backward of a training step of bench_networks.py.
"alone" repeats each call, with its own tensors, until nothing else is in the caches. Copies are counted because a
gradient that comes in another layout must be copied first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from bench_networks import ACTIVATIONS, NAMES, THREADS, build, images, step
from machine import described
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.profiler import ProfilerActivity, profile

import batchnorm as bn
from batchnorm.kernels import bindings

KERNELS = ("forward", "backward")
THEIRS = (
    "aten::native_batch_norm", "aten::native_batch_norm_backward", "aten::relu", "aten::relu_", "aten::clamp_min",
    "aten::clamp_min_", "aten::threshold_backward", "aten::hardtanh", "aten::hardtanh_", "aten::hardtanh_backward",
    "aten::silu", "aten::silu_", "aten::silu_backward", "aten::hardswish", "aten::hardswish_",
    "aten::hardswish_backward",
)  # fmt: skip


class Spent:
    """Seconds in the kernels, their calls, and the copies of gradients and residuals to another layout."""

    def __init__(self) -> None:
        self.seconds, self.calls, self.copies, self.kept = 0.0, 0, 0, []


@contextmanager
def watched(spent: Spent, keep: bool) -> Iterator[None]:
    """Time every call of the bindings in the block. With `keep`, keep what they were called with."""
    originals = {name: getattr(bindings, name) for name in (*KERNELS, "_laid_out")}

    def timed(name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = originals[name](*args, **kwargs)
            spent.seconds += time.perf_counter() - start
            spent.calls += 1
            if keep:
                spent.kept.append((originals[name], args, kwargs))
            return result

        return call

    def laid_out(t: Tensor, x: Tensor, last: bool | None) -> Tensor:
        found = originals["_laid_out"](t, x, last)
        spent.copies += found is not t
        return found

    for name in KERNELS:
        setattr(bindings, name, timed(name))
    bindings._laid_out = laid_out
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(bindings, name, original)


def alone(kept: list[Any]) -> float:
    """Return the seconds that all calls take, each the median of repeated calls."""
    total = 0.0
    for function, args, kwargs in kept:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            function(*args, **kwargs)
            times.append(time.perf_counter() - start)
        total += statistics.median(times)
    return total


def theirs(model: nn.Module, x: Tensor, labels: Tensor) -> float:
    """Return the seconds of a step that torch's BN and activations take, by its profiler."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        step(model, x, labels, torch.float32)
    return sum(event.self_cpu_time_total for event in found.key_averages() if event.key in THEIRS) / 1e6


def theirs_alone(model: nn.Module, x: Tensor, labels: Tensor) -> float:
    """Return the seconds of torch's BN and activation layers called again and again, forward and backward."""
    calls: list[tuple[nn.Module, Tensor]] = []

    def keep(layer: nn.Module, args: tuple[Tensor]) -> None:
        calls.append((layer, args[0].detach().clone()))

    layers = [layer for layer in model.modules() if isinstance(layer, (_BatchNorm, *ACTIVATIONS))]
    hooks = [layer.register_forward_pre_hook(keep) for layer in layers]
    step(model, x, labels, torch.float32)
    for hook in hooks:
        hook.remove()
    total = 0.0
    for layer, given in calls:
        times, dz = [], torch.ones_like(given)
        for _ in range(5):
            fresh = given.requires_grad_().clone()  # the activation may write in place
            start = time.perf_counter()
            layer(fresh).backward(dz)
            times.append(time.perf_counter() - start)
        total += statistics.median(times)
    return total


def measured(name: str, layout: str, rounds: int) -> dict[str, Any]:
    x, labels = images(layout == "NHWC")
    plain = build(name)
    plain = plain.to(memory_format=torch.channels_last) if layout == "NHWC" else plain  # pyright: ignore[reportCallIssue, reportArgumentType]
    fused = bn.fuse(plain, x[:2]).model.train()
    found: dict[str, list[float]] = {key: [] for key in ("torch", "fused", "torch_inside", "ours_inside")}
    spent = Spent()
    for _ in range(rounds + 1):
        for side, model in (("torch", plain), ("fused", fused)):
            start = time.perf_counter()
            step(model, x, labels, torch.float32)
            found[side].append(time.perf_counter() - start)
        found["torch_inside"].append(theirs(plain, x, labels))
        spent = Spent()
        with watched(spent, keep=False):
            step(fused, x, labels, torch.float32)
        found["ours_inside"].append(spent.seconds)
    ms = {key: 1e3 * statistics.median(values[1:]) for key, values in found.items()}
    kept = Spent()
    with watched(kept, keep=True):
        step(fused, x, labels, torch.float32)
    ms["ours_alone"] = 1e3 * alone(kept.kept)
    ms["torch_alone"] = 1e3 * theirs_alone(plain, x, labels)
    return {"ms": ms, "calls": spent.calls, "copies": spent.copies}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"of {', '.join(NAMES)}; default: resnet50")
    parser.add_argument("--layout", choices=("NCHW", "NHWC"), default="NHWC")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    given = parser.parse_args()
    bn.keep_memory()
    torch.set_num_threads(THREADS)
    records = {}
    for name in given.networks or ["resnet50"]:
        records[name] = measured(name, given.layout, given.rounds)
        print(
            name, {key: round(value) for key, value in records[name]["ms"].items()}, records[name]["copies"], flush=True
        )
    if given.out:
        conditions = {"layout": given.layout, "rounds": given.rounds, **described(kept=True)}
        given.out.write_text(json.dumps({"conditions": conditions, "networks": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
