"""Compare a call of a layer with torch's where the kernel has nothing to do: what is left is Python.

    python benchmarks/bench_call.py [records/kernels/call.json]

The input is 4x8x4x4, in training, on one thread. "ours" is our layer with a ReLU; "torch" is torch's layer and its
ReLU, called one after the other. Two parts of ours are timed alone. "function" is an autograd Function that does
nothing but save five tensors. "kernel" is the forward kernel with its outputs allocated, without autograd. All
alternate. The least of the rounds is reported, since other processes only add.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import described
from torch import Tensor, nn

import batchnorm as bn
from batchnorm.kernels import bindings
from batchnorm.kernels.activation import Transform
from batchnorm.kernels.bindings import Running

ROUNDS, CALLS = 60, 200


class _Empty(torch.autograd.Function):
    """What any autograd Function in Python costs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, bias, weight, bias)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        _, weight, bias, *_ = ctx.saved_tensors
        return gradients[0], weight, bias


def contenders() -> dict[str, Callable[[], object]]:
    """Return what is timed, by name."""
    torch.manual_seed(0)
    x = torch.randn(4, 8, 4, 4)
    given = x.clone().requires_grad_()
    ours, norm, relu = bn.BatchNorm2d(8, activation="relu"), nn.BatchNorm2d(8), nn.ReLU()
    how = Transform(ours.weight.detach(), ours.bias.detach(), ours.eps, "relu")
    running = Running(torch.zeros(8), torch.ones(8), 0.1, torch.tensor(0))
    return {
        "ours": lambda: ours(x),
        "torch": lambda: relu(norm(x)),
        "ours, with backward": lambda: ours(given).backward(x),
        "torch, with backward": lambda: relu(norm(given)).backward(x),
        "function": lambda: _Empty.apply(x, ours.weight, ours.bias),
        "kernel": lambda: bindings.forward(x, how, running),
    }


def main() -> None:
    torch.set_num_threads(1)
    least: dict[str, float] = {}
    calls = contenders()
    for _ in range(ROUNDS):
        for name, call in calls.items():
            began = time.perf_counter()
            for _ in range(CALLS):
                call()
            spent = (time.perf_counter() - began) / CALLS * 1e6
            least[name] = min(spent, least.get(name, spent))
    for name, spent in least.items():
        print(f"{name:<22}{spent:6.1f} us")
    if len(sys.argv) > 1:
        result = {"microseconds": {name: round(spent, 2) for name, spent in least.items()}, "machine": described()}
        Path(sys.argv[1]).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
