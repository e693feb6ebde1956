"""What is measured of a network: accuracy, top-1 and top-5, and the spread of one sigmoid's input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..training.rows import Row

PERCENTILES = (15, 50, 85)


def measure(model: nn.Sequential, images: Tensor, labels: Tensor, unit: int) -> Row:
    """Accuracy over (images, labels), and the percentiles of what enters `unit` of the last sigmoid (Fig. 1).

    The model is in eval mode: its BN layers use population statistics, here the moving averages (Sec. 3.1), never
    those of the images measured.
    """
    last = max(i for i, layer in enumerate(model) if isinstance(layer, nn.Sigmoid))
    sigmoid_input = model[:last](images)
    predicted = model[last:](sigmoid_input).argmax(1)
    levels = torch.tensor([p / 100 for p in PERCENTILES])
    spread = torch.quantile(sigmoid_input[:, unit], levels).tolist()
    accuracy = (predicted == labels).sum().item() / len(labels)
    return {"test_accuracy": accuracy} | {f"p{p}": value for p, value in zip(PERCENTILES, spread, strict=True)}


def count_hits(scores: Tensor, labels: Tensor) -> Tensor:
    """(top-1, top-5, images), float64, of scores (N, classes) and labels (N,)."""
    hits = scores.topk(min(5, scores.shape[1])).indices == labels[:, None]
    return torch.tensor([hits[:, 0].sum().item(), hits.sum().item(), len(labels)], dtype=torch.float64)


def steps_to(rows: list[Row], arm: str, accuracy: float) -> int | None:
    """The first recorded step at which `arm` has reached `accuracy`, or None."""
    return next((row["step"] for row in rows if row["arm"] == arm and row["test_accuracy"] >= accuracy), None)
