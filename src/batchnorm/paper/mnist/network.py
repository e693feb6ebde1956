"""Build the network of Sec. 4.1, with and without BN."""

from __future__ import annotations

import torch
from torch import nn

from ...layers import BatchNorm1d
from .data import PIXELS

HIDDEN, LAYERS, CLASSES = 100, 3, 10


def network(arm: str, std: float, seed: int) -> nn.Sequential:
    """Return 784-100-100-100-10 with sigmoids. Arm "plain" computes g(Wu + b), arm "bn" g(BN(Wu)) (Sec. 3.2).

    Arguments:
        arm: "plain" or "bn".
        std: standard deviation of the weights, which are Gaussian. Biases and beta start at 0, gamma at 1.
        seed: seed of the weights. Both arms draw the same.
    """
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    inputs = PIXELS
    for _ in range(LAYERS):
        layers.append(nn.Linear(inputs, HIDDEN, bias=arm == "plain"))
        if arm == "bn":
            layers.append(BatchNorm1d(HIDDEN))
        layers.append(nn.Sigmoid())
        inputs = HIDDEN
    layers.append(nn.Linear(inputs, CLASSES))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=std, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)
