"""The networks and the batches of records/trial: batchnorm trial trial_mnist:relu --data trial_mnist:batches."""

from __future__ import annotations

from torch import Tensor, nn

from batchnorm.paper.mnist.data import load_mnist

BATCHES, SIZE = 500, 60


def sigmoid() -> nn.Module:
    """Return the paper's network of Sec. 4.1, 784-100-100-100-10, with torch's own initial weights."""
    layers: list[nn.Module] = []
    width = 784
    for _ in range(3):
        layers += [nn.Linear(width, 100), nn.Sigmoid()]
        width = 100
    return nn.Sequential(*layers, nn.Linear(width, 10))


def relu() -> nn.Module:
    """Return a small network of two convolutions with ReLU, which trains well without BN."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 8, 5, stride=2),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 25, 10),
    )


def batches() -> list[tuple[Tensor, Tensor]]:
    """Return the first 30,000 training images of binary MNIST in batches of 60, with their labels."""
    mnist = load_mnist()
    images = mnist.train_images[: BATCHES * SIZE].float().split(SIZE)
    return list(zip(images, mnist.train_labels.split(SIZE), strict=False))
