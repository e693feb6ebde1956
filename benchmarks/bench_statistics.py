"""Time what statistics/ costs: masks, virtual batches, accumulation, synchronization.

    python benchmarks/bench_statistics.py --out records/statistics/cost.json

Forward and backward, float32, two threads, `bn.keep_memory()` for all. Contenders alternate; medians of the rounds.

- masked: a batch of sequences of which 70 % is no padding. "packed" packs the values by hand and runs torch's layer on
  them. "unmasked" is our layer on everything, which is wrong.
- virtual: batches of 8 in 64 examples. "loop" is torch's layer on each part, and torch.cat, as TabNet has it.
- accumulate: four micro-batches of a ResNet-18. "none" is without the block.
- synchronized: a ResNet-18 under DistributedDataParallel on two processes of one thread. "plain" is torch's BN, of each
  process alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
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

ROUNDS = 9


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

    def step() -> None:
        model.zero_grad()
        for x in micro_batches:
            model(x).square().mean().backward()

    def ours() -> None:
        with bn.accumulate(model):
            step()

    return alternate({"ours": ours, "none": step})


def rank(index: int, folder: str) -> None:
    bn.keep_memory()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=index, world_size=2)
    torch.manual_seed(0)
    x = torch.randn(8, 3, 128, 128)
    steps = {}
    for side in ("synchronized", "ours, alone", "plain"):
        model = torchvision.models.resnet18(weights=None)
        if side != "plain":
            model = bn.fuse(model, x[:2]).model.train()
        model = bn.synchronize(model) if side == "synchronized" else model
        ddp = DistributedDataParallel(model)
        steps[side] = lambda m=ddp: m(x).square().mean().backward()
    found = alternate(steps)
    if index == 0:
        Path(folder, "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def synchronized() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        start_processes(rank, (folder,), nprocs=2, start_method="spawn")
        return json.loads(Path(folder, "found.json").read_text())


PARTS = {"masked": masked, "virtual": virtual, "accumulate": accumulated, "synchronized": synchronized}


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
