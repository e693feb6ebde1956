"""Time our layers between convolutions: chains conv -> BN -> ReLU -> conv, and training steps of BN-Inception.

Torch's layers and ours alternate in one process. The result is the median of the rounds. Convolutions run on torch's
thread pool. A second pool beside it would cost a chain more than our BN gains, so each row also counts the threads of
the process and its CPU seconds per second of time.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from pathlib import Path

import torch
from machine import described
from torch import Tensor, nn

import batchnorm as bn
from batchnorm.paper.inception.network import Inception

FORMATS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
CHAINS = [(64, 56), (128, 28), (192, 14)]  # channels, side


def chain(channels: int) -> nn.Sequential:
    first, second = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
    return nn.Sequential(first, bn.BatchNorm2d(channels, activation="relu"), second)


def torchs(network: nn.Module) -> nn.Module:
    """Copy `network`, with torch's BatchNorm2d and an in-place ReLU wherever it has our fused layer."""
    network = copy.deepcopy(network)
    for parent in list(network.modules()):
        for name, layer in list(parent._modules.items()):
            if isinstance(layer, bn.BatchNorm2d):
                theirs = nn.BatchNorm2d(layer.num_features)
                theirs.load_state_dict(layer.state_dict())
                relu = [nn.ReLU(inplace=True)] if layer.activation == "relu" else []
                parent._modules[name] = nn.Sequential(theirs, *relu)
    return network


def step(network: nn.Module, x: Tensor) -> float:
    start = time.perf_counter()
    network(x).square().mean().backward()
    return time.perf_counter() - start


def check(ours: nn.Module, theirs: nn.Module, x: Tensor, tolerance: float) -> None:
    """Exit unless the output and gradients of a training step agree, by their norms."""
    found = []
    for network in (ours, theirs):
        z = network(x)
        found.append([z.detach(), *torch.autograd.grad(z.square().mean(), list(network.parameters()))])
    off = max(float((one - other).norm() / other.norm()) for one, other in zip(*found, strict=True))
    if not off <= tolerance:
        raise SystemExit(f"a step with our layers is {off:.1e} off torch's")


def measure(name: str, network: nn.Module, x: Tensor, layout: str, rounds: int) -> dict:
    x = x.contiguous(memory_format=FORMATS[layout])
    ours = copy.deepcopy(network).to(memory_format=FORMATS[layout])  # pyright: ignore[reportCallIssue]
    pair = {"torch": torchs(ours), "ours": ours}
    # In a chain torch's channels-last sums have an error of up to 5e-5. In the whole network rounding flips masks, and
    # the effects add up: torch's own gradients move by 2 % if the input changes by 1e-7.
    check(pair["ours"], pair["torch"], x, 1e-4 if name.startswith("chain") else 5e-2)
    seconds: dict[str, list[float]] = {which: [] for which in pair}
    threads, cpu = {}, dict.fromkeys(pair, 0.0)
    for round_ in range(rounds + 1):
        for which, contender in list(pair.items())[:: 1 if round_ % 2 else -1]:  # in alternating order
            before = time.process_time()
            taken = step(contender, x)
            if round_:  # the first round is the warm-up
                seconds[which].append(taken)
                cpu[which] += time.process_time() - before
            threads[which] = len(list(Path("/proc/self/task").iterdir())) if Path("/proc/self/task").exists() else None
    median = {which: statistics.median(times) * 1e3 for which, times in seconds.items()}
    return {
        "name": name,
        "layout": layout,
        "threads": torch.get_num_threads(),
        "ms": {which: round(value, 3) for which, value in median.items()},
        "times_torch": round(median["torch"] / median["ours"], 3),
        "process_threads": threads,
        "cpu_per_second": {which: round(cpu[which] / sum(seconds[which]), 3) for which in pair},
        "rounds_ms": {which: [round(t * 1e3, 3) for t in times] for which, times in seconds.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", choices=["chains", "inception"])
    parser.add_argument("--out", type=Path, help="where to write the JSON")
    args = parser.parse_args()
    torch.manual_seed(0)
    kept = bn.keep_memory()
    networks = []
    if args.only != "inception":
        networks += [(f"chain {c}x{side}", chain(c), torch.randn(args.batch, c, side, side)) for c, side in CHAINS]
    if args.only != "chains":
        networks += [("BN-Inception", Inception(batch_norm=True), torch.randn(args.batch, 3, 224, 224))]
    rows = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        for name, network, x in networks:
            for layout in FORMATS:
                rows.append(measure(name, network, x, layout, args.rounds if "chain" in name else 3))
                print({key: value for key, value in rows[-1].items() if key != "rounds_ms"}, flush=True)
    if args.out:
        record = {"batch": args.batch, **described(kept), "rows": rows}
        args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
