"""How much of a layer's time is the way to the kernel: python benchmarks/bench_way.py --layout NCHW.

The 69 layers of bench_batch_norm.py, forward and backward: torch eager, ours, the time inside our kernels, and `bare`,
an autograd function in Python that allocates and saves what ours does and computes nothing. After a pass over memory
the caches are cold, for Python and for torch's own dispatch, so `bare` runs after one too. What it takes, no kernel can
give back: torch's time over the sum of both bounds what a layer can reach that is no part of torch's own C++.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_batch_norm import FORMATS, contenders, layers, run
from torch import Tensor, nn

import batchnorm as bn


class Nothing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, bias, torch.empty((3, x.size(1)), dtype=torch.float64))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, ...]:
        x, _, bias, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(bias), torch.empty_like(bias)


class Bare(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return Nothing.apply(input, self.weight, self.bias)  # pyright: ignore[reportReturnType]


class Clocked:
    """The compiled kernels, and the milliseconds spent inside them."""

    def __init__(self, kernels: Any) -> None:
        self.kernels, self.spent = kernels, 0.0
        self.forward, self.backward = self._clocked(kernels.forward), self._clocked(kernels.backward)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.kernels, name)

    def _clocked(self, kernel: Callable) -> Callable:
        def call(*args: Any) -> Any:
            start = time.perf_counter()
            result = kernel(*args)
            self.spent += (time.perf_counter() - start) * 1e3
            return result

        return call


def run_cold(layer: nn.Module, x: Tensor, dz: Tensor) -> float:
    """Milliseconds of forward and backward, each after a pass over memory."""
    start = pass_over(x)
    z = layer(x)
    forward = time.perf_counter() - start
    start = pass_over(x)
    torch.autograd.grad(z, [x, *layer.parameters()], dz)
    return (forward + time.perf_counter() - start) * 1e3


def pass_over(x: Tensor) -> float:
    x.detach().clone()
    return time.perf_counter()


def measure(shape: tuple[int, ...], layout: str, rounds: int, clock: Clocked) -> dict[str, float]:
    """Medians in ms of a step of one layer."""
    x, dz = (torch.randn(shape).contiguous(memory_format=FORMATS[layout]) for _ in range(2))
    x.requires_grad_()
    found, bare = contenders(shape, with_compile=False), Bare(shape[1])
    times = defaultdict(list)
    for _ in range(rounds + 1):
        for name, layer in found.items():
            clock.spent = 0.0
            times[name].append(sum(run(layer, x, dz, inference=False).values()))
            if name == "ours":
                times["kernels"].append(clock.spent)
        times["bare"].append(run_cold(bare, x, dz))
    return {name: statistics.median(taken[1:]) for name, taken in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layout", choices=FORMATS, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", type=Path, help="where to write the JSON")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    bn.keep_memory()
    clock = Clocked(bn.kernels._kernels)
    bn.kernels._kernels = clock
    rows = [{"shape": s, "times": n, "ms": measure(s, args.layout, args.rounds, clock)} for s, n in layers().items()]
    total = {name: sum(row["ms"][name] * row["times"] for row in rows) for name in rows[0]["ms"]}
    summary = {
        "ms": total,
        "times_torch": total["torch"] / total["ours"],
        "times_torch_if_the_way_were_bare": total["torch"] / (total["kernels"] + total["bare"]),
        "times_torch_inside_the_kernels": total["torch"] / total["kernels"],
    }
    print(json.dumps(summary, indent=1))
    if args.out:
        settings = {"layout": args.layout, "threads": args.threads, "rounds": args.rounds, "torch": torch.__version__}
        args.out.write_text(json.dumps(settings | {"summary": summary, "rows": rows}) + "\n")


if __name__ == "__main__":
    main()
