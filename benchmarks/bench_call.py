"""Time one call of a layer at 4x8x4x4, in training, where Python takes nearly all of the time. One thread.

    python benchmarks/bench_call.py [records/kernels/call.json]

"ours" is our layer with a ReLU; "torch" is torch's layer and its ReLU, called one after the other. Their outputs are
compared before the clock starts. Two parts of ours are timed alone. "function" is an autograd Function that does
nothing but save five tensors. "kernel" is the forward kernel with its outputs allocated, without autograd. All
alternate.

The result is the median of the rounds, and the 10th and the 90th percentile.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_batch_norm import spread
from machine import described
from torch import Tensor, nn

import batchnorm as bn
from batchnorm.kernels import bindings
from batchnorm.kernels.activation import Transform
from batchnorm.kernels.bindings import Running

ROUNDS, CALLS = 60, 200


class _Empty(torch.autograd.Function):
    """An autograd Function that computes nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, bias, weight, bias)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        _, weight, bias, *_ = ctx.saved_tensors
        return gradients[0], weight, bias


def contenders() -> dict[str, Callable[[], object]]:
    """Return the calls to time, by name."""
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
    calls = contenders()
    torch.testing.assert_close(calls["ours"](), calls["torch"]())
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            began = time.perf_counter()
            for _ in range(CALLS):
                call()
            spent[name].append(round((time.perf_counter() - began) / CALLS * 1e6, 2))
    for name, rounds in spent.items():
        low, high = spread(rounds)
        print(f"{name:<22}{statistics.median(rounds):6.1f} us ({low:.1f} to {high:.1f})")
    if len(sys.argv) > 1:
        result = {"microseconds": spent, "machine": described()}
        Path(sys.argv[1]).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
