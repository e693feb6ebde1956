"""Train a small speech-like network on padded sequences, with and without masks: records/statistics/padding.json.

    python tools/padded_sequences.py records/statistics/padding.json

A sequence is an MNIST digit without its empty columns at both sides: 28 features, 2 to 20 steps. Two convolutions, the
second with stride 2, each with BN and ReLU; then the mean over the sequence's own steps and a linear layer. Batches are
padded to their longest sequence ("tight") or to 64 steps ("wide"). The network trains with either padding and is tested
with both. Padding should not matter.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import batchnorm as bn
from batchnorm.paper.mnist.data import load_mnist

SEEDS, EPOCHS, BATCH, WIDE = (1, 2, 3), 2, 60, 64
Sequences = list[tuple[Tensor, int]]


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
    found = []
    for image, label in zip(images.view(-1, 28, 28), labels.tolist(), strict=True):
        columns = image.any(0).nonzero().flatten()
        found.append((image[:, columns[0] : columns[-1] + 1].float(), label))
    return found


def batches(data: Sequences, padding: str):
    for start in range(0, len(data), BATCH):
        part = data[start : start + BATCH]
        lengths = torch.tensor([x.shape[1] for x, _ in part])
        width = WIDE if padding == "wide" else int(lengths.max())
        x = torch.stack([F.pad(x, (0, width - x.shape[1])) for x, _ in part])
        yield x, lengths, torch.tensor([label for _, label in part])


def masks(model: nn.Module, lengths: Tensor, wanted: bool):
    return bn.masked(model, lengths=lengths) if wanted else nullcontext()


def train(data: Sequences, padding: str, masked: bool, seed: int) -> Network:
    torch.manual_seed(seed)
    model = Network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(EPOCHS):
        order = torch.randperm(len(data)).tolist()
        for x, lengths, labels in batches([data[i] for i in order], padding):
            with masks(model, lengths, masked):
                loss = F.cross_entropy(model(x, lengths), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: Network, data: Sequences, padding: str, masked: bool) -> float:
    right = 0
    for x, lengths, labels in batches(data, padding):
        with masks(model, lengths, masked):
            right += int((model(x, lengths).argmax(1) == labels).sum())
    return right / len(data)


def main() -> None:
    out = Path(sys.argv[1])
    torch.set_num_threads(1)
    digits = load_mnist()
    training = sequences(digits.train_images, digits.train_labels)
    test = sequences(digits.test_images, digits.test_labels)
    rows = []
    for masked in (False, True):
        for padding in ("tight", "wide"):
            for seed in SEEDS:
                model = train(training, padding, masked, seed)
                tested = {name: accuracy(model, test, name, masked) for name in ("tight", "wide")}
                rows.append({"masked": masked, "trained": padding, "seed": seed, "accuracy": tested})
                print(rows[-1], flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"torch": torch.__version__, "training": len(training), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
