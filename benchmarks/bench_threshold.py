"""Below how many values torch's operations are faster than the way to the kernel: python benchmarks/bench_threshold.py.

A layer of ours, forward and backward in training and forward in inference, forced to the one and to the other, which
alternate; the median of the ratio torch / kernel of many rounds. `FEWEST_IN_INFERENCE` in functional.py is about the
size from which the kernel is no slower without an activation; with one it is the faster one there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

import batchnorm as bn
from batchnorm import functional, kernels

FLAT = [(32, 4), (32, 32), (32, 64), (60, 100), (128, 64), (128, 128), (256, 128)]
SHORT = [(256, 512, 3, 3), (128, 128, 14, 1), (65536, 3, 2, 2)]  # maps of fewer values than a vector has
MAPS = [(4, 16, 16, 16), (8, 16, 14, 14), (8, 32, 14, 14), (32, 32, 7, 7), (32, 64, 7, 7), (32, 128, 7, 7)]
COMPILED = kernels._kernels
CALLS = 40  # between two looks at the clock


def seconds(run: Callable[[], object], by_kernel: bool) -> float:
    kernels._kernels = COMPILED if by_kernel else None
    start = time.perf_counter()
    for _ in range(CALLS):
        run()
    return time.perf_counter() - start


def ratio(run: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median of torch's time over the kernel's, and microseconds of the kernel."""
    pairs = [(seconds(run, False), seconds(run, True)) for _ in range(rounds + 2)][2:]
    return statistics.median(a / b for a, b in pairs), statistics.median(b for _, b in pairs) / CALLS * 1e6


def row(shape: tuple[int, ...], channels_last: bool, activation: functional.Activation | None, rounds: int) -> dict:
    x, dz = torch.randn(shape), torch.randn(shape)
    if channels_last:
        x, dz = (t.contiguous(memory_format=torch.channels_last) for t in (x, dz))
    kind = bn.BatchNorm1d if len(shape) == 2 else bn.BatchNorm2d
    layer = kind(shape[1], activation=activation)
    trained = x.clone().requires_grad_()
    parameters = [trained, *layer.parameters()]
    training, training_us = ratio(lambda: torch.autograd.grad(layer(trained), parameters, dz), rounds)
    layer.eval()
    with torch.no_grad():
        inference, inference_us = ratio(lambda: layer(x), rounds)
    return {
        "shape": shape,
        "values": x.numel(),
        "channels_last": channels_last,
        "activation": activation,
        "training": round(training, 3),
        "training_us": round(training_us, 1),
        "inference": round(inference, 3),
        "inference_us": round(inference_us, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="where to write the JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    functional.FEWEST_IN_INFERENCE = 1
    rows = []
    for shape in FLAT + SHORT + MAPS:
        for last in (False, True) if len(shape) > 2 else (False,):
            for activation in (None, "relu"):
                rows.append(row(shape, last, activation, args.rounds))
                print(" ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    if args.out:
        record = {"threads": args.threads, "torch": torch.__version__, "kernels": COMPILED.target()}
        args.out.write_text(json.dumps({**record, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
