"""Time the training of BN-Inception at 224x224 on the CPU, against torch's layers, on two processes, and from JPEGs.

    python benchmarks/bench_inception.py [--rounds 5] [--out records/inception-speed/training.json]
    python benchmarks/bench_inception.py --part loading --rounds 10 --out records/inception-speed/loading.json

Every contender has a process of its own, because the allocator belongs to the process. Contenders alternate, one step
each. All have the same network, weights and images. They differ in the layers (torch.nn.BatchNorm2d and ReLU, or ours),
the memory format, the precision, the allocator and torch.compile, whose first step takes minutes. The first step is
not counted, and all contenders must agree on its loss.

The part "loading" trains BN-x5 as the command does, from 200 generated JPEGs of 500x375 in class folders. The system
caches the files in memory. For each number of workers, one after another, it measures the seconds per step and the
share of them that the training waits for images.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from bench_images import write_images
from machine import described
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import batchnorm as bn
from batchnorm.paper.images.loader import default_workers
from batchnorm.paper.images.sources import open_images
from batchnorm.paper.inception.config import InceptionConfig
from batchnorm.paper.inception.network import Inception
from batchnorm.paper.inception.settled import settled
from batchnorm.paper.inception.trainer import Trainer
from batchnorm.paper.inception.variants import BN_X5
from batchnorm.paper.training.processes import ALONE

BATCH, SIZE = 32, 224
# name -> our layers, channels-last, bfloat16, keep_memory, torch.compile
CONTENDERS = {
    "torch, NCHW, float32, default malloc": (False, False, False, False, False),
    "torch, NCHW, float32, kept memory": (False, False, False, True, False),
    "torch, NHWC, float32, kept memory": (False, True, False, True, False),
    "ours, NCHW, float32": (True, False, False, True, False),
    "ours, NHWC, float32": (True, True, False, True, False),
    "ours, NHWC, float32, compiled": (True, True, False, True, True),
    "ours, NHWC, bfloat16": (True, True, True, True, False),
}
BASELINE = next(iter(CONTENDERS))
WORKERS = (0, 1, 2)
WARM_UP = 2  # steps; the first starts the workers


def with_torch_layers(module: nn.Module) -> nn.Module:
    """Replace our fused layers, in place, by torch's BatchNorm2d and an in-place ReLU. Return the network."""
    for name, child in module.named_children():
        if isinstance(child, bn.BatchNorm2d):
            plain = nn.BatchNorm2d(child.num_features)
            setattr(module, name, nn.Sequential(plain, nn.ReLU(inplace=True)))
        else:
            with_torch_layers(child)
    return module


def make_step(ours: bool, channels_last: bool, low: bool, keep: bool, compiled: bool) -> Callable[[], float]:
    """Return a function that does one training step and returns the loss."""
    if keep:
        bn.keep_memory()
    torch.manual_seed(0)
    model = Inception(batch_norm=True, size=SIZE)
    images, labels = torch.randn(BATCH, 3, SIZE, SIZE), torch.randint(1000, (BATCH,))
    model = model if ours else with_torch_layers(model)
    if channels_last:
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        images = images.contiguous(memory_format=torch.channels_last)
    if compiled:
        model.compile()
    network = DistributedDataParallel(model) if dist.is_initialized() else model
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss = nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    step.network = network  # pyright: ignore[reportFunctionMemberAccess]
    return step


def serve(name: str, threads: int) -> None:
    """Do one step per line of stdin, and print its seconds and loss. This is the process of a contender."""
    torch.set_num_threads(threads)
    step = make_step(*CONTENDERS[name])
    for _ in sys.stdin:
        start = time.perf_counter()
        loss = step()
        print(json.dumps([time.perf_counter() - start, loss]), flush=True)


class Contender:
    """Control the process of one contender."""

    def __init__(self, name: str, threads: int) -> None:
        command = [sys.executable, __file__, "--serve", name, "--threads", str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.losses, self.seconds = [], []

    def step(self) -> None:
        """Do one step, and append its seconds and its loss."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        seconds, loss = json.loads(self.process.stdout.readline())
        self.seconds.append(seconds)
        self.losses.append(loss)

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def train_in_turns(threads: int, rounds: int) -> dict[str, Any]:
    """Return the images per second of every contender. The first step is the warm-up: its loss is checked."""
    contenders = {name: Contender(name, threads) for name in CONTENDERS}
    for _ in range(rounds + 1):
        for contender in contenders.values():
            contender.step()
    for contender in contenders.values():
        contender.close()
    first = contenders[BASELINE].losses[0]
    for name, contender in contenders.items():
        tolerance = 0.05 if "bfloat16" in name else 1e-3
        assert abs(contender.losses[0] - first) < tolerance * first, f"{name} computes another loss"
    return {
        name: {"seconds": contender.seconds[1:], "images_per_second": BATCH / statistics.median(contender.seconds[1:])}
        for name, contender in contenders.items()
    }


def work(rounds: int) -> None:
    """Time steps with and without averaging gradients, in a process of torchrun. Rank 0 prints the seconds."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    step = make_step(*CONTENDERS["ours, NHWC, float32"])
    network: DistributedDataParallel = step.network  # pyright: ignore[reportFunctionMemberAccess]
    seconds = {"with": [], "without": []}
    for number in range(rounds + 1):
        for kind, found in seconds.items():
            dist.barrier()
            start = time.perf_counter()
            if kind == "with":
                step()
            else:
                with network.no_sync():
                    step()
            dist.barrier()
            if number:
                found.append(time.perf_counter() - start)
    if dist.get_rank() == 0:
        print(json.dumps(seconds))
    dist.destroy_process_group()


def processes(rounds: int) -> dict[str, Any]:
    """Compare a step of one process with a step of two. Each process has one thread and trains 32 images.

    Efficiency is the ratio of their seconds.
    """
    found = {}
    for count in (1, 2):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        command = [*launcher, __file__, "--work", "--rounds", str(rounds)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[count] = json.loads(done.stdout.strip().splitlines()[-1])
    alone, beside, together = (
        statistics.median(seconds) for seconds in (found[1]["without"], found[2]["without"], found[2]["with"])
    )
    return {
        "seconds": found,
        "efficiency": alone / together,
        "lost_to_sharing_the_machine": (beside - alone) / together,
        "lost_to_averaging_gradients": (together - beside) / together,
    }


def load(data: str, workers: int, threads: int, rounds: int) -> None:
    """Train from JPEGs, and print the seconds of the steps and the share of them spent waiting for images."""
    bn.keep_memory()
    torch.set_num_threads(threads)
    images = open_images(data, "train")
    trainer = Trainer(settled(InceptionConfig(data, workers=workers), BN_X5), BN_X5, images, images, ALONE)
    trainer.model.train()
    seconds = []
    for step in range(WARM_UP + rounds):
        if step == WARM_UP:
            trainer.waiting.restart()
        start = time.perf_counter()
        trainer.update(step).item()
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"seconds": seconds[WARM_UP:], "waited": trainer.waiting.share}))


def loading(threads: int, rounds: int) -> dict[str, Any]:
    """Return the results of `load` for each number of workers, and the default number."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        kilobytes, data = write_images(Path(name)), f"{name}/folders"
        default = default_workers(open_images(data, "train"))
        for workers in WORKERS:
            command = [sys.executable, __file__, "--load", data, "--workers", str(workers)]
            command += ["--threads", str(threads), "--rounds", str(rounds)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[workers] = json.loads(done.stdout)
    return {"kilobytes": kilobytes, "default_workers": default, "workers": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--part", choices=("training", "processes", "loading"), help="only this part")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--load", help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(options.serve, options.threads)
    if options.work:
        return work(options.rounds)
    if options.load:
        return load(options.load, options.workers, options.threads, options.rounds)
    result: dict[str, Any] = {
        "network": f"BN-Inception, batch {BATCH}, {SIZE}x{SIZE}",
        "threads": options.threads,
        **described(),
    }
    if options.part in (None, "training"):
        result["training"] = train_in_turns(options.threads, options.rounds)
        base = result["training"][BASELINE]["images_per_second"]
        for name, row in result["training"].items():
            row["ratio"] = row["images_per_second"] / base
            print(f"{name:40} {row['images_per_second']:6.1f} images/s  {row['ratio']:.2f}x")
    if options.part in (None, "processes"):
        result["processes"] = processes(options.rounds)
        for name in ("efficiency", "lost_to_sharing_the_machine", "lost_to_averaging_gradients"):
            print(f"{name.replace('_', ' '):40} {result['processes'][name]:.1%}")
    if options.part in (None, "loading"):
        result["loading"] = loading(options.threads, options.rounds)
        for workers, row in result["loading"]["workers"].items():
            rate = BATCH / statistics.median(row["seconds"])
            print(f"{f'{workers} workers':40} {rate:6.2f} images/s  waited {row['waited']:.2%}")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return None


if __name__ == "__main__":
    main()
