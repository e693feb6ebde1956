"""Networks and batches for trials."""

import torch
from torch import nn

from batchnorm.paper.mnist.data import load_mnist


def mnist_batches(batches=20, size=50):
    """Return (images, labels) batches of binary MNIST."""
    mnist, examples = load_mnist(), batches * size
    images = mnist.train_images[:examples].float().split(size)
    return list(zip(images, mnist.train_labels[:examples].split(size), strict=True))


def deep_sigmoid():
    """Return a deep network of sigmoids, which learns nothing in a few steps without BN."""
    layers, width = [], 784
    for _ in range(4):
        layers += [nn.Linear(width, 32), nn.Sigmoid()]
        width = 32
    return nn.Sequential(*layers, nn.Linear(width, 10))


def linear_batches(batches=20, size=32):
    """Return batches of a linear map with a little noise, which no BN can help to learn."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 1, generator=generator)
    inputs = torch.randn(batches, size, 8, generator=generator)
    return [(x, x @ weight + 0.1 * torch.randn(size, 1, generator=generator)) for x in inputs]


def small_mlp():
    """Return a small network of one hidden layer."""
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))


def with_norm():
    """Return a network that has BN, and a layer before it without bias."""
    return nn.Sequential(nn.Linear(8, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1))
