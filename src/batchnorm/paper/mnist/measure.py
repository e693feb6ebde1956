"""Measure a network of Sec. 4.1: its accuracy, and the spread of one sigmoid's input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..training.rows import Row
from .records import PERCENTILES


def measure(model: nn.Sequential, images: Tensor, labels: Tensor, unit: int) -> Row:
    """Return the accuracy, and the percentiles of the input of one sigmoid in the last hidden layer (Fig. 1).

    BN uses population statistics, here the moving averages (Sec. 3.1). The measured images do not change them.

    Arguments:
        model: the network, in eval mode.
        images: the images to measure, (N, 784), float32.
        labels: their labels, (N,), int64.
        unit: the number of the sigmoid in its layer.
    """
    last = max(i for i, layer in enumerate(model) if isinstance(layer, nn.Sigmoid))
    sigmoid_input = model[:last](images)
    predicted = model[last:](sigmoid_input).argmax(1)
    levels = torch.tensor([p / 100 for p in PERCENTILES])
    spread = torch.quantile(sigmoid_input[:, unit], levels).tolist()
    accuracy = (predicted == labels).sum().item() / len(labels)
    return {"test_accuracy": accuracy} | {f"p{p}": value for p, value in zip(PERCENTILES, spread, strict=True)}
