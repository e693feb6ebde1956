"""Find the size from which the kernel is faster than torch: python benchmarks/bench_threshold.py.

Three contenders take turns: our layer by the kernel, the same layer by torch's operations ("fallback"), and torch's
own layer ("layer"), followed by an in-place ReLU where our layer applies one. Each row has the forward and backward in
training, and the forward in inference. A ratio is the median over the rounds of a contender's time over the kernel's.

`FEWEST_IN_INFERENCE` in kernels/dispatch.py is about the size from which the kernel is no slower than the fallback
without an activation. With one the kernel is faster there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from machine import described
from torch import Tensor, nn

import batchnorm as bn
from batchnorm.kernels import bindings, dispatch
from batchnorm.kernels.activation import Activation

FLAT = [(32, 4), (32, 32), (32, 64), (60, 100), (128, 64), (128, 128), (256, 128)]
SHORT = [(256, 512, 3, 3), (128, 128, 14, 1), (65536, 3, 2, 2)]  # maps shorter than a vector
MAPS = [(4, 16, 16, 16), (8, 16, 14, 14), (8, 32, 14, 14), (32, 32, 7, 7), (32, 64, 7, 7), (32, 128, 7, 7)]
COMPILED = bindings._kernels
CALLS = 40  # between two readings of the clock
Runs = dict[str, Callable[[], object]]


def seconds(run: Callable[[], object], by_kernel: bool) -> float:
    bindings._kernels = COMPILED if by_kernel else None
    start = time.perf_counter()
    for _ in range(CALLS):
        run()
    return time.perf_counter() - start


def compare(runs: Runs, rounds: int) -> dict[str, float]:
    """Return the microseconds of the kernel, and the time of each other contender over the kernel's."""
    turns = [
        {name: seconds(runs[name], name == "kernel") for name in list(runs)[:: 1 if i % 2 else -1]}
        for i in range(rounds + 2)
    ][2:]  # the first two are the warm-up
    found = {name: statistics.median(t[name] / t["kernel"] for t in turns) for name in runs if name != "kernel"}
    return {"us": round(statistics.median(t["kernel"] for t in turns) / CALLS * 1e6, 1)} | {
        name: round(ratio, 3) for name, ratio in found.items()
    }


def row(shape: tuple[int, ...], channels_last: bool, activation: Activation | None, rounds: int) -> dict:
    x, dz = torch.randn(shape), torch.randn(shape)
    if channels_last:
        x, dz = (t.contiguous(memory_format=torch.channels_last) for t in (x, dz))
    x.requires_grad_()
    flat = len(shape) == 2
    ours = (bn.BatchNorm1d if flat else bn.BatchNorm2d)(shape[1], activation=activation)
    theirs = nn.Sequential((nn.BatchNorm1d if flat else nn.BatchNorm2d)(shape[1]))
    if activation:
        theirs.append(nn.ReLU(inplace=True))
    networks = {"kernel": ours, "fallback": ours, "layer": theirs}
    found = {}
    for phase, run in (("training", train), ("inference", infer)):
        for network in networks.values():
            network.train(phase == "training")
        # torch's channels-last sums of 262,144 values have an error of 3e-4.
        torch.testing.assert_close(run(ours, x, dz), run(theirs, x, dz), rtol=1e-3, atol=1e-4)
        found[phase] = compare({name: partial(run, network, x, dz) for name, network in networks.items()}, rounds)
    return {
        "shape": shape,
        "values": x.numel(),
        "channels_last": channels_last,
        "activation": activation,
        **found,
    }


def train(network: nn.Module, x: Tensor, dz: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(network(x), [x, *network.parameters()], dz)


@torch.no_grad()
def infer(network: nn.Module, x: Tensor, _dz: Tensor) -> Tensor:
    return network(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="where to write the JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dispatch.FEWEST_IN_INFERENCE = 1
    rows = []
    for shape in FLAT + SHORT + MAPS:
        for last in (False, True) if len(shape) > 2 else (False,):
            for activation in (None, "relu"):
                rows.append(row(shape, last, activation, args.rounds))
                print(" ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    bindings._kernels = COMPILED
    if args.out:
        record = {"threads": args.threads, **described(), "rows": rows}
        args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
