"""Time a whole training step of networks that people train, with torch's layers and after `bn.fuse`.

    python benchmarks/bench_networks.py --layout NCHW --out records/networks/NCHW-float32.json
    python benchmarks/bench_networks.py --layout NHWC --dtype bfloat16 resnet50
    python benchmarks/bench_networks.py --part script --out records/networks/script.json
    python benchmarks/bench_networks.py --part memory --out records/networks/memory.json

A step is forward, cross-entropy and backward of 16 images of 160x160 on two threads. The contenders alternate, one
step each, in one process with `bn.keep_memory()` for all. Before the clock starts, the loss and the gradients of the
fused network are compared with float64's: torch's own float32 gradients are off by 4 % in some layers.

- torch: the network as torchvision has it, or a CSP network with SiLU as YOLO detectors have it.
- fused: after `bn.fuse`.
- compiled: the plain network after `torch.compile`. With --compile only: each takes minutes to compile.
- no BN: every batch normalization is an Identity. The bound for any faster BN.
- bare: every activation that can be fused is an Identity too. Nothing of BN and its activation is left to pay for.

"script" is what a person gets who adds two lines, `bn.keep_memory()` and `bn.fuse`, to a plain script: a process
for each side, the plain one with glibc's defaults. "memory" is the peak of a step in a process of its own.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from operator import truediv
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from machine import described
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import batchnorm as bn

BATCH, SIZE, CLASSES, THREADS = 16, 160, 1000, 2
NAMES = {
    "resnet18": "resnet18",
    "resnet50": "resnet50",
    "mobilenet_v2": "mobilenet_v2",
    "mobilenet_v3_large": "mobilenet_v3_large",
    "efficientnet_b0": "efficientnet_b0",
    "regnet_y_800mf": "regnet_y_800mf",
    "densenet121": "densenet121",
    "csp_silu": None,
}
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> nn.Sequential:
    """Return convolution, BN and SiLU, the unit of the CSP network."""
    plain = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(plain, nn.BatchNorm2d(outputs), nn.SiLU(inplace=True))


class Bottleneck(nn.Module):
    """Two convolutions with a shortcut around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = conv(channels, channels), conv(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return x + f(x)."""
        return x + self.second(self.first(x))


class Stage(nn.Module):
    """A cross-stage partial block: half of the channels go through bottlenecks."""

    def __init__(self, inputs: int, outputs: int, depth: int) -> None:
        super().__init__()
        half = outputs // 2
        self.down = conv(inputs, outputs, 3, 2)
        self.through, self.past = conv(outputs, half), conv(outputs, half)
        self.blocks = nn.Sequential(*(Bottleneck(half) for _ in range(depth)))
        self.join = conv(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Halve the resolution, then mix."""
        x = self.down(x)
        return self.join(torch.cat((self.blocks(self.through(x)), self.past(x)), 1))


def csp_network() -> nn.Module:
    """Return a classifier with the backbone of a small YOLO detector."""
    widths, depths = (32, 64, 128, 256, 512), (1, 3, 3, 1)
    stages = [Stage(a, b, depth) for a, b, depth in zip(widths[:-1], widths[1:], depths, strict=True)]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], CLASSES))
    return nn.Sequential(conv(3, widths[0], 3, 2), *stages, *head)


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return csp_network() if NAMES[name] is None else torchvision.models.get_model(NAMES[name], weights=None)


def without(model: nn.Module, kinds: Any) -> nn.Module:
    """Return a copy with an Identity in the place of every layer of these kinds."""
    model = copy.deepcopy(model)
    for path, layer in list(model.named_modules()):
        if isinstance(layer, kinds):
            model.set_submodule(path, nn.Identity())
    return model


def images(channels_last: bool) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, 3, SIZE, SIZE, generator=rng)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    return x, torch.randint(CLASSES, (BATCH,), generator=rng)


def step(model: nn.Module, x: Tensor, labels: Tensor, dtype: torch.dtype) -> Tensor:
    """Do one training step but for the update of the weights. Return the loss."""
    model.zero_grad(set_to_none=True)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss = F.cross_entropy(model(x).float(), labels)
    loss.backward()
    return loss.detach()


def contenders(name: str, x: Tensor, channels_last: bool, compiled: bool) -> dict[str, nn.Module]:
    plain = build(name)
    plain = plain.to(memory_format=torch.channels_last) if channels_last else plain  # pyright: ignore[reportCallIssue, reportArgumentType]
    for layer in plain.modules():  # every step must do the same, so nothing is dropped at random
        if isinstance(layer, nn.Dropout | torchvision.ops.StochasticDepth):
            layer.p = 0.0
    found = {
        "torch": plain,
        "fused": bn.fuse(plain, x[:2]).model.train(),
        "no BN": without(plain, _BatchNorm),
        "bare": without(plain, (_BatchNorm, *ACTIVATIONS)),
    }
    return {**found, "compiled": torch.compile(copy.deepcopy(plain))} if compiled else found  # pyright: ignore[reportReturnType]


def check(models: dict[str, nn.Module], x: Tensor, labels: Tensor) -> None:
    """Raise AssertionError if the loss or a gradient is farther from float64 than torch's float32 may be."""
    exact = copy.deepcopy(models["torch"]).double()
    losses = [step(models[side], x, labels, torch.float32) for side in ("torch", "fused")]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=1e-3)
    step(exact, x.double(), labels, torch.float32)
    scale = max(float(p.grad.abs().max()) for p in exact.parameters() if p.grad is not None)
    theirs, ours = (largest_error(models[side], exact) / scale for side in ("torch", "fused"))
    assert ours < max(1e-3, 1.5 * theirs), f"relative error of the gradients: {ours:.1e}, of torch's {theirs:.1e}"


def largest_error(model: nn.Module, exact: nn.Module) -> float:
    pairs = zip(model.parameters(), exact.parameters(), strict=True)
    return max(float((p.grad - e.grad).abs().max()) for p, e in pairs if p.grad is not None and e.grad is not None)


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def measure_steps(options: argparse.Namespace) -> dict[str, Any]:
    """Return the milliseconds of each contender's steps, for each network."""
    bn.keep_memory()
    torch.set_num_threads(THREADS)
    dtype, last = DTYPES[options.dtype], options.layout == "NHWC"
    x, labels = images(last)
    records = {}
    for name in options.networks:
        models = contenders(name, x, last, options.compile)
        check(models, x, labels)
        ms: dict[str, list[float]] = {side: [] for side in models}
        for turn in range(options.rounds + 1):  # the first warms up
            for side, model in models.items():
                ms[side].append(timed(lambda m=model: step(m, x, labels, dtype)))
                if turn == 0:
                    ms[side].clear()
        records[name] = summarized(ms)
        print(f"{name:20} {line(records[name])}", flush=True)
    ratios = [r["times_torch"] for r in records.values()]
    left = [r["left"] for r in records.values()]
    total = {"times_torch": math.exp(statistics.mean(map(math.log, ratios))), "left": statistics.mean(left)}
    print(f"{'geometric mean':20} {total['times_torch']:.3f} times torch, {total['left']:.0%} left on average")
    return {"total": total, "networks": records}


def summarized(ms: dict[str, list[float]]) -> dict[str, Any]:
    medians = {side: statistics.median(values) for side, values in ms.items()}
    times = times_torch(ms)
    return {
        "times_torch": times["fused"],
        "bound_no_bn": times["no BN"],
        "bound_bare": times["bare"],
        "left": (1 / times["fused"] - 1 / times["bare"]) / (1 - 1 / times["bare"]),  # of what BN and activation cost
        "medians_ms": medians,
        "ms": ms,
    }


def times_torch(ms: dict[str, list[float]]) -> dict[str, float]:
    """Return how many times as fast as torch each contender is: the median of the rounds' ratios.

    Other users of the machine slow all contenders of a round down, so no ratio of medians is safe.
    """
    return {side: statistics.median(map(truediv, ms["torch"], values)) for side, values in ms.items()}


def line(record: dict[str, Any]) -> str:
    sides = ", ".join(f"{side} {value:.0f}" for side, value in record["medians_ms"].items())
    return f"{record['times_torch']:.2f} times torch; {record['left']:.0%} of BN's cost left; ms: {sides}"


def measure_apart(options: argparse.Namespace) -> dict[str, Any]:
    """Return what processes of their own say, the plain side and the changed side, alternating."""
    records: dict[str, Any] = {}
    for name in options.networks:
        found: dict[str, list[float]] = {"plain": [], "changed": []}
        for _ in range(options.rounds if options.part == "script" else 1):
            for side in found:
                command = (sys.executable, __file__, name, "--part", options.part, "--side", side)
                done = subprocess.run(
                    [*command, "--layout", options.layout], check=True, stdout=subprocess.PIPE, text=True
                )
                found[side].append(json.loads(done.stdout))
        ratio = statistics.median(found["plain"]) / statistics.median(found["changed"])
        records[name] = {**found, "plain_over_changed": ratio}
        print(f"{name:20} {ratio:.2f}; {found}", flush=True)
    return {"networks": records}


def one_side(options: argparse.Namespace) -> float:
    """Return the milliseconds of a step, or the megabytes that a step adds at its peak."""
    (name,) = options.networks
    changed = options.side == "changed"
    if changed and options.part == "script":
        bn.keep_memory()
    torch.set_num_threads(THREADS)
    x, labels = images(options.layout == "NHWC")
    model = build(name)
    model = model.to(memory_format=torch.channels_last) if options.layout == "NHWC" else model  # pyright: ignore[reportCallIssue, reportArgumentType]
    model = bn.fuse(model, x[:2]).model.train() if changed else model
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(model, x, labels, torch.float32)
    if options.part == "memory":
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return statistics.median(timed(lambda: step(model, x, labels, torch.float32)) for _ in range(4))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"of {', '.join(NAMES)}; default: all")
    parser.add_argument("--part", choices=("steps", "script", "memory"), default="steps")
    parser.add_argument("--layout", choices=("NCHW", "NHWC"), default="NCHW")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32", help="of autocast")
    parser.add_argument("--rounds", type=int, default=5, help="alternating, after a warm-up (default: 5)")
    parser.add_argument("--compile", action="store_true", help="time torch.compile of the plain network too")
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    parser.add_argument("--side", choices=("plain", "changed"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.networks = options.networks or list(NAMES)
    if options.side:
        print(json.dumps(one_side(options)))
        return
    result = measure_steps(options) if options.part == "steps" else measure_apart(options)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        settings = {name: getattr(options, name) for name in ("part", "layout", "dtype", "rounds")}
        conditions = {
            **settings,
            "batch": BATCH,
            "size": SIZE,
            "threads": THREADS,
            **described(kept=options.part == "steps"),
        }
        options.out.write_text(json.dumps({"conditions": conditions, **result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
