"""Compare batch normalization inside a network with the same calls alone.

    python benchmarks/bench_inside.py resnet50 --layout NHWC --out records/networks/inside-NHWC.json

Every call of BN with its residual and activation is timed in a training step of bench_networks.py: "inside". Torch's
calls are those of its profiler. Then each of our calls is repeated with the same tensors: "again", and "cold" if other
memory was read in between. Copies to another layout are counted, and page faults of a step.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from bench_networks import NAMES, THREADS, build, images, step
from machine import described
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import batchnorm as bn
from batchnorm.kernels import bindings

KERNELS = ("forward", "backward")
OTHER = 256 << 20  # bytes read between two calls, so that the caches hold nothing of the next one
THEIRS = (
    "aten::add_", "aten::native_batch_norm", "aten::native_batch_norm_backward", "aten::relu", "aten::relu_",
    "aten::clamp_min", "aten::clamp_min_", "aten::threshold_backward", "aten::hardtanh", "aten::hardtanh_",
    "aten::hardtanh_backward", "aten::silu", "aten::silu_", "aten::silu_backward", "aten::hardswish",
    "aten::hardswish_", "aten::hardswish_backward",
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


def alone(kept: list[Any], between: Callable[[], object]) -> float:
    """Return the seconds of all calls, each the median of five, with another call before each that is not timed."""
    total = 0.0
    for function, args, kwargs in kept:
        times = []
        for _ in range(5):
            between()
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


def faults_of(run: Callable[[], object]) -> int:
    """Return the page faults of a call: new memory that the kernel had to find and clear."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    run()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


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
    ms["ours_again"] = 1e3 * alone(kept.kept, lambda: None)
    other = torch.zeros(OTHER // 4)
    ms["ours_cold"] = 1e3 * alone(kept.kept, other.sum)
    faults = {"torch": faults_of(lambda: step(plain, x, labels, torch.float32))}
    faults["fused"] = faults_of(lambda: step(fused, x, labels, torch.float32))
    return {"ms": ms, "calls": spent.calls, "copies": spent.copies, "page_faults": faults}


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
        ms = {key: round(value) for key, value in records[name]["ms"].items()}
        print(f"{name}: ms {ms}, copies {records[name]['copies']}, faults {records[name]['page_faults']}", flush=True)
    if given.out:
        conditions = {"layout": given.layout, "rounds": given.rounds, **described(kept=True)}
        given.out.write_text(json.dumps({"conditions": conditions, "networks": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
