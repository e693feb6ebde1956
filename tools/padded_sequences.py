"""Train a small speech-like network on padded sequences, with and without masks: records/statistics/padding.json.

    python tools/padded_sequences.py records/statistics/padding.json

A sequence is an MNIST digit without its empty columns at both sides: 28 features, 2 to 20 steps. Two convolutions, the
second with stride 2, each with BN and ReLU; then the mean over the sequence's own steps and a linear layer. Batches are
padded to their longest sequence ("tight"), to 128 steps ("wide"), or to a length drawn between these ("varied"), as
where one long sequence sets the length of its batch. The network trains with each padding and is tested with "tight"
and "wide". Padding should not matter.

A finished training is not done again, so that the script can be stopped and started.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import batchnorm as bn
from batchnorm.atomic import make_folder, write_atomically
from batchnorm.paper.mnist.data import load_mnist

SEEDS, EPOCHS, BATCH, WIDE = (1, 2, 3), 1, 60, 128
TRAINED, TESTED = ("tight", "varied", "wide"), ("tight", "wide")


class Sequences(NamedTuple):
    """Digits from their first column on, (N, 28, 28), the number of their columns, and their classes."""

    x: Tensor
    lengths: Tensor
    labels: Tensor


class Network(nn.Module):
    """Two convolutions over time, the mean over each sequence's own steps, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv1d(28, 48, 3, padding=1, bias=False),
            bn.BatchNorm1d(48, activation="relu"),
            nn.Conv1d(48, 64, 3, stride=2, padding=1, bias=False),
            bn.BatchNorm1d(64, activation="relu"),
        )
        self.classifier = nn.Linear(64, 10)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Return the logits of x (N, 28, L)."""
        z = self.features(x)
        steps = (lengths + 1) // 2
        counts = torch.arange(z.shape[2]) < steps[:, None]
        return self.classifier((z * counts[:, None]).sum(2) / steps[:, None])


def sequences(images: Tensor, labels: Tensor) -> Sequences:
    """Return the digits moved to the left, so that the empty columns are behind them."""
    x = images.view(-1, 28, 28).float()
    inked = x.any(1)
    first = inked.int().argmax(1)
    lengths = 28 - first - inked.flip(1).int().argmax(1)
    columns = (torch.arange(28) + first[:, None]) % 28
    return Sequences(x.gather(2, columns[:, None].expand_as(x)), lengths, labels)


def batches(data: Sequences, order: Tensor, padding: str) -> Iterator[Sequences]:
    """Yield batches in this order. "varied" draws from torch's generator, once a batch."""
    for rows in order.split(BATCH):
        x, lengths, labels = (t[rows] for t in data)
        longest = int(lengths.max())
        width = {"tight": longest, "varied": int(torch.randint(longest, WIDE, ())), "wide": WIDE}[padding]
        yield Sequences(F.pad(x, (0, width - 28)), lengths, labels)  # a negative number of columns crops


def masks(model: nn.Module, lengths: Tensor, wanted: bool) -> AbstractContextManager[None]:
    return bn.masked(model, lengths=lengths) if wanted else nullcontext()


def train(data: Sequences, padding: str, masked: bool, seed: int) -> Network:
    torch.manual_seed(seed)
    model = Network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(EPOCHS):
        for x, lengths, labels in batches(data, torch.randperm(len(data.x)), padding):
            with masks(model, lengths, masked):
                loss = F.cross_entropy(model(x, lengths), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: Network, data: Sequences, padding: str, masked: bool) -> float:
    right = 0
    for x, lengths, labels in batches(data, torch.arange(len(data.x)), padding):
        with masks(model, lengths, masked):
            right += int((model(x, lengths).argmax(1) == labels).sum())
    return right / len(data.x)


def table(rows: list[dict]) -> list[str]:
    """Return the table of the README: the test accuracy of each seed."""
    lines = ["| trained with | padding | tested tight, each seed | tested wide, each seed |", "|---|---|---|---|"]
    for masked, padding in product((False, True), TRAINED):
        found = [row for row in rows if (row["masked"], row["trained"]) == (masked, padding)]
        cells = [", ".join(f"{100 * row['accuracy'][name]:.2f} %" for row in found) for name in TESTED]
        lines.append(f"| {'masks' if masked else 'no masks'} | {padding} | {cells[0]} | {cells[1]} |")
    return lines


def main() -> None:
    out = Path(sys.argv[1])
    torch.set_num_threads(1)
    digits = load_mnist()
    training = sequences(digits.train_images, digits.train_labels)
    test = sequences(digits.test_images, digits.test_labels)
    rows = json.loads(out.read_text())["rows"] if out.exists() else []
    done = {(row["masked"], row["trained"], row["seed"]) for row in rows}
    make_folder(out.parent)
    for masked, padding, seed in product((False, True), TRAINED, SEEDS):
        if (masked, padding, seed) in done:
            continue
        start = time.monotonic()
        model = train(training, padding, masked, seed)
        tested = {name: accuracy(model, test, name, masked) for name in TESTED}
        rows.append({"masked": masked, "trained": padding, "seed": seed, "accuracy": tested})
        print(rows[-1], f"{time.monotonic() - start:.0f} s", flush=True)
        conditions = {"torch": torch.__version__, "training": len(training.x), "epochs": EPOCHS, "batch": BATCH}
        write_atomically(out, json.dumps({"conditions": conditions, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
