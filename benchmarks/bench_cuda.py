"""Time a training step on a CUDA device, with torch's layers and after `bn.fuse`.

    python benchmarks/bench_cuda.py --out records/cuda/h100.json

A step is forward, loss and backward. The contenders alternate in one process, a block of steps each, timed by CUDA
events after a warm-up. "layer" is BN and ReLU alone. "network" is a whole network, batch 64 at 224x224, with autocast
to bfloat16 where it says so. "host" is the time that the forward of a small layer takes the processor, which does not
wait for the device.

The library has no fused CUDA kernels. So this measures what its promises cost on a GPU: statistics that a batch with
NaN or infinity does not move.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from machine import described
from torch import Tensor, nn

import batchnorm as bn

LAYERS = ((4, 8, 4, 4), (64, 64, 112, 112), (64, 256, 56, 56), (64, 512, 28, 28), (64, 2048, 7, 7))
NETWORKS = ("resnet50", "mobilenet_v2", "efficientnet_b0")
BATCH, SIZE, CLASSES = 64, 224, 1000
ROUNDS = 5
Block = Callable[[Callable[[], object], int], float]  # a step and a number of steps to milliseconds a step


def device_block(step: Callable[[], object], steps: int) -> float:
    """Return the milliseconds of one of so many steps."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(steps):
        step()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / steps


def alternate(sides: Mapping[str, Callable[[], object]], steps: int, block: Block = device_block) -> dict[str, Any]:
    ms: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(ROUNDS + 1):  # the first warms up
        for side, step in sides.items():
            taken = block(step, steps)
            if turn:
                ms[side].append(taken)
    ours, torchs = (statistics.median(ms[side]) for side in ("ours", "torch"))
    return {"times_torch": torchs / ours, "torch_ms": torchs, "ours_ms": ours, "ms": ms}


def host_block(step: Callable[[], object], steps: int) -> float:
    """Return the milliseconds that one of so many steps takes the host. The device is idle at first."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - start) / steps * 1e3


def host_record() -> dict[str, Any]:
    x = torch.randn(8, 64, 8, 8, device="cuda", requires_grad=True)
    layers = {"torch": nn.BatchNorm2d(64).cuda(), "ours": bn.BatchNorm2d(64).cuda()}
    return alternate({side: lambda m=layer: m(x) for side, layer in layers.items()}, 300, host_block)


def layer_record(shape: tuple[int, ...], channels_last: bool) -> dict[str, Any]:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(shape, device="cuda").to(memory_format=layout).requires_grad_()
    dz = torch.randn_like(x)
    channels = shape[1]
    layers = {
        "torch": nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True)).cuda(),
        "ours": bn.BatchNorm2d(channels, activation="relu").cuda(),
    }
    outputs = [layer(x) for layer in layers.values()]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
    sides = {
        side: lambda m=layer: torch.autograd.grad(m(x), (x, *m.parameters()), dz) for side, layer in layers.items()
    }
    return alternate(sides, steps=50)


def network_record(name: str, channels_last: bool, half: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(BATCH, 3, SIZE, SIZE, device="cuda").to(memory_format=layout)
    labels = torch.randint(CLASSES, (BATCH,), device="cuda")
    plain = torchvision.models.get_model(name, weights=None).cuda().to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    models = {"torch": plain, "ours": bn.fuse(plain, x[:2]).model.train()}

    def step(model: nn.Module) -> Tensor:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            loss = F.cross_entropy(model(x).float(), labels)
        loss.backward()
        return loss

    return alternate({side: lambda m=model: step(m) for side, model in models.items()}, steps=10)


def shown(name: str, record: dict[str, Any]) -> dict[str, Any]:
    print(f"{name:40} {record['times_torch']:.2f} times torch ({record['torch_ms']:.3f} ms)", flush=True)
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    options = parser.parse_args()
    records = {"host forward 8x64x8x8": shown("host forward 8x64x8x8", host_record())}
    for last in (False, True):
        layout = "NHWC" if last else "NCHW"
        for shape in LAYERS:
            name = f"layer {'x'.join(map(str, shape))} {layout}"
            records[name] = shown(name, layer_record(shape, last))
        for network in NETWORKS:
            for half in (False, True):
                name = f"network {network} {layout} {'bfloat16' if half else 'float32'}"
                records[name] = shown(name, network_record(network, last, half))
    if options.out:
        conditions = {"device": torch.cuda.get_device_name(), "rounds": ROUNDS, **described()}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"conditions": conditions, "records": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
