"""Both MNIST trainings, ours against a straightforward PyTorch loop: python benchmarks/bench_mnist.py [--steps N].

The loop is what one writes first: nn.Linear, nn.BatchNorm1d, nn.Sigmoid, torch.optim.SGD, float32 images in memory,
one network after the other. Ours gets the same weights, batches, learning rate and number of threads, and arrives at
the same weights. It differs in four things:

- `bn.BatchNorm1d` runs on the compiled kernel.
- Gradients go straight into the parameters: nothing is accumulated into .grad, looked up by an optimizer and cleared.
- Images stay one byte a pixel, so that gathering 60 random ones reads a quarter of the memory.
- With two threads each network trains in its own; two threads inside one operation on 60 x 100 values gain nothing.

Evaluation is left out of both. Prints a table; --out FILE also writes JSON.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from threading import Event

import torch
from torch import nn

from batchnorm.paper.mnist.batches import Batches
from batchnorm.paper.mnist.config import MnistConfig
from batchnorm.paper.mnist.data import Mnist, load_mnist
from batchnorm.paper.mnist.experiment import ArmTraining
from batchnorm.paper.mnist.network import network
from batchnorm.paper.mnist.parallel import in_parallel
from batchnorm.paper.mnist.records import ARMS
from batchnorm.paper.training.loop import train
from batchnorm.paper.training.rows import Row
from batchnorm.paper.training.versions import versions

Weights = dict[str, dict[str, torch.Tensor]]


def torch_network(arm: str, config: MnistConfig) -> nn.Sequential:
    layers = (
        nn.BatchNorm1d(100) if isinstance(layer, nn.BatchNorm1d) else layer
        for layer in network(arm, config.std, config.seed)
    )
    return nn.Sequential(*layers)


def straightforward(config: MnistConfig, data: Mnist, images: torch.Tensor) -> Weights:
    torch.set_num_threads(config.threads)
    weights = {}
    for arm in ARMS:
        model = torch_network(arm, config)
        optimizer = torch.optim.SGD(model.parameters(), lr=config.lr)
        criterion = nn.CrossEntropyLoss()
        batches = Batches(len(images), config.batch_size, config.seed)
        for step in range(config.steps):
            index = batches.indices(step)
            optimizer.zero_grad()
            loss = criterion(model(images[index]), data.train_labels[index])
            loss.backward()
            optimizer.step()
        weights[arm] = model.state_dict()
    return weights


class Unmeasured(ArmTraining):
    """A training of which nothing is measured: evaluation is left out of both contenders."""

    def measure(self) -> Row:
        """Return an empty row."""
        return {}


def ours(config: MnistConfig, data: Mnist) -> Weights:
    trainings = {arm: Unmeasured(config, arm, data) for arm in ARMS}
    stop = Event()
    in_parallel(lambda arm: train(trainings[arm], print_nothing, stop), ARMS, config.threads, stop)
    return {arm: trained.model.state_dict() for arm, trained in trainings.items()}


def print_nothing(row: Row) -> None:
    """No record and no progress bar inside the clock."""


def seconds(run, *arguments) -> float:
    start = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="of each network, a round (default: 2000)")
    parser.add_argument("--rounds", type=int, default=7, help="alternating, after a warm-up (default: 7)")
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    options = parser.parse_args()
    data = load_mnist()
    images = data.train_images.float()

    # 100 steps apart, float32 roundings in another order have not grown past this.
    check = MnistConfig(steps=100, eval_every=100)
    torch.testing.assert_close(ours(check, data), straightforward(check, data, images), rtol=1e-3, atol=1e-4)

    result = {"steps": options.steps, "made_with": versions(), "threads": {}}
    print(f"both trainings, µs a step (median of {options.rounds} alternating rounds, fastest to slowest)")
    for threads in (1, 2):
        config = MnistConfig(steps=options.steps, eval_every=options.steps, threads=threads)
        rounds = [
            (seconds(straightforward, config, data, images), seconds(ours, config, data)) for _ in range(options.rounds)
        ]
        loop, fast = ([1e6 * value / options.steps for value in values] for values in zip(*rounds, strict=True))
        ratio = statistics.median(a / b for a, b in rounds)
        result["threads"][threads] = {"loop_us": loop, "ours_us": fast, "median_ratio": ratio}
        for name, values in (("PyTorch loop", loop), ("batchnorm", fast)):
            spread = f"({min(values):.0f} to {max(values):.0f})"
            print(f"  {threads} thread(s)  {name:13} {statistics.median(values):6.0f}  {spread}")
        print(f"  {threads} thread(s)  {ratio:.2f} times as fast")
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
