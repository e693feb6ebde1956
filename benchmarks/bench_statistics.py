"""Time what statistics/ costs: masks, virtual batches, accumulation, synchronization.

    python benchmarks/bench_statistics.py --out records/statistics/cost.json

Forward and backward, float32, two threads, `bn.keep_memory()` for all. Contenders alternate. Medians of the rounds, and
all rounds. Masks and virtual batches are checked against torch's layers before the clock starts.

- masked: 32 sequences of 256 channels and up to 400 steps, of which 70 % is no padding. "packed" packs the values by
  hand and runs torch's layer on them. "unmasked" is our layer on everything, which is wrong.
- virtual: batches of 8 in 64 examples of (64, 28, 28). "loop" is torch's layer on each part, and torch.cat, as TabNet
  has it. "whole batch" is our layer without virtual batches.
- accumulate: four micro-batches of 4 images for a ResNet-18 of torch's layers. "none" is without the block.
- hold: a forward of this network in training mode, within the block and without.
- synchronized: a training step of a ResNet-18 under DistributedDataParallel on two processes of one thread, 8 images of
  128x128 each. "torch alone" has torch's BN, of each process alone. "ours alone" is the network of `bn.fuse`, and
  "synchronized" is this one with `bn.synchronize`.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torchvision
from machine import described
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel

import batchnorm as bn

ROUNDS = 15


def alternate(sides: Mapping[str, Callable[[], object]]) -> dict[str, Any]:
    """Return the median milliseconds of each side, and all rounds."""
    ms: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(ROUNDS + 1):  # the first warms up
        for side, step in sides.items():
            start = time.perf_counter()
            step()
            if turn:
                ms[side].append(1e3 * (time.perf_counter() - start))
    return {"medians_ms": {side: statistics.median(values) for side, values in ms.items()}, "ms": ms}


def table(records: Mapping[str, Any]) -> list[str]:
    """Return the table of the README: medians, the middle half of the rounds, and the ratio to the last contender."""
    lines = ["| part | contender | ms | middle half | times the last |", "|---|---|---|---|---|"]
    for part, found in records.items():
        last = list(found["medians_ms"].values())[-1]
        for side, median in found["medians_ms"].items():
            low, _, high = statistics.quantiles(found["ms"][side], n=4)
            lines.append(f"| {part} | {side} | {median:.1f} | {low:.1f} to {high:.1f} | {median / last:.2f} |")
    return lines


def trained(layer: Callable[[Tensor], Tensor], x: Tensor, dz: Tensor) -> Callable[[], object]:
    return lambda: torch.autograd.grad(layer(x), x, dz)


def masked() -> dict[str, Any]:
    n, channels, length = 32, 256, 400
    x = torch.randn(n, channels, length, requires_grad=True)
    dz = torch.randn(n, channels, length)
    lengths = torch.linspace(0.4 * length, length, n).long()
    mask = torch.arange(length) < lengths[:, None]
    ours, plain = bn.BatchNorm1d(channels), nn.BatchNorm1d(channels)

    def packed(x: Tensor) -> Tensor:
        rows = x.movedim(1, -1)[mask]
        z = torch.zeros(n, length, channels)
        z[mask] = plain(rows)
        return z.movedim(-1, 1)

    torch.testing.assert_close(ours(x, lengths=lengths), packed(x), rtol=1e-4, atol=1e-4)
    sides = {"ours": lambda x: ours(x, lengths=lengths), "packed": packed, "unmasked": ours}
    return alternate({side: trained(layer, x, dz) for side, layer in sides.items()})


def virtual() -> dict[str, Any]:
    x = torch.randn(64, 64, 28, 28, requires_grad=True)
    dz = torch.randn_like(x)
    ours, plain = bn.BatchNorm2d(64, virtual_batch_size=8), nn.BatchNorm2d(64)

    def loop(x: Tensor) -> Tensor:
        return torch.cat([plain(part) for part in x.split(8)])

    torch.testing.assert_close(ours(x), loop(x), rtol=1e-4, atol=1e-4)
    sides = {"ours": ours, "loop": loop, "whole batch": bn.BatchNorm2d(64)}
    return alternate({side: trained(layer, x, dz) for side, layer in sides.items()})


def accumulated() -> dict[str, Any]:
    model = torchvision.models.resnet18(weights=None)
    micro_batches = torch.randn(4, 4, 3, 128, 128).unbind()

    def none() -> None:
        model.zero_grad()
        for x in micro_batches:
            step(model, x)

    def ours() -> None:
        with bn.accumulate(model):
            none()

    return alternate({"ours": ours, "none": none})


@torch.no_grad()
def held() -> dict[str, Any]:
    model = torchvision.models.resnet18(weights=None)
    x = torch.randn(4, 3, 128, 128)

    def ours() -> None:
        with bn.hold_statistics(model):
            model(x)

    return alternate({"ours": ours, "none": lambda: model(x)})


def step(model: nn.Module, x: Tensor) -> None:
    model(x).square().mean().backward()


def rank(index: int, folder: str) -> None:
    bn.keep_memory()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=index, world_size=2)
    torch.manual_seed(0)
    x = torch.randn(8, 3, 128, 128)
    plain = torchvision.models.resnet18(weights=None)
    fused = bn.fuse(plain, x[:2]).model.train()
    sides = {"synchronized": bn.synchronize(copy.deepcopy(fused)), "ours alone": fused, "torch alone": plain}
    steps = {side: partial(step, DistributedDataParallel(model), x) for side, model in sides.items()}
    found = alternate(steps)
    if index == 0:
        Path(folder, "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def synchronized() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        start_processes(rank, (folder,), nprocs=2, start_method="spawn")
        return json.loads(Path(folder, "found.json").read_text())


PARTS = {"masked": masked, "virtual": virtual, "accumulate": accumulated, "hold": held, "synchronized": synchronized}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    options = parser.parse_args()
    kept = bn.keep_memory()
    torch.set_num_threads(2)
    records = {}
    for name in options.parts or PARTS:
        records[name] = PARTS[name]()
        medians = records[name]["medians_ms"]
        print(f"{name:14}", ", ".join(f"{side} {ms:.1f} ms" for side, ms in medians.items()), flush=True)
    if options.out:
        conditions = {"rounds": ROUNDS, "threads": 2, "cores": os.cpu_count(), **described(kept=bool(kept))}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"conditions": conditions, "records": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
