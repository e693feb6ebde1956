"""Measure a network's layers: how activations drift, which feature maps are dead, and which rates are stable."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ....layers import BatchNorm2d

LEAST_RATE = 2.0**-6
DOUBLINGS = 26


class Moments(NamedTuple):
    """The values of each feature map over images and positions, (C,) each."""

    mean: Tensor
    std: Tensor
    least: Tensor
    most: Tensor


class Layer(NamedTuple):
    """A convolution that a nonlinearity follows, and the BN between them if there is one."""

    name: str
    convolution: nn.Conv2d
    norm: BatchNorm2d | None


class Observed(NamedTuple):
    """The moments at each layer: what the convolution puts out, and what enters the nonlinearity."""

    raw: list[Moments]
    inputs: list[Moments]


class Drift(NamedTuple):
    """How far mean and deviation moved, in deviations before: averages over the feature maps of a layer."""

    mean: float
    spread: float


def find_layers(model: nn.Module) -> list[Layer]:
    """Return the convolutions that a nonlinearity follows, in the network's order."""
    found = []
    for name, block in model.named_modules():
        parts = list(block) if isinstance(block, nn.Sequential) else []
        if len(parts) == 2 and isinstance(parts[0], nn.Conv2d):
            norm = parts[1] if isinstance(parts[1], BatchNorm2d) else None
            found.append(Layer(name.removeprefix("inception.").replace("branches.", ""), parts[0], norm))
    return found


def observe(model: nn.Module, images: Tensor) -> Observed:
    """Return the moments at every layer over these images, in the order of `find_layers`.

    BN normalizes by the statistics of these images, as in training. The running statistics stay as they are.
    """
    layers, seen = find_layers(model), {}

    def record(convolution: nn.Module, _inputs: object, output: Tensor) -> None:
        seen[convolution] = _moments(output)  # at once, since a ReLU in place overwrites the output

    hooks = [layer.convolution.register_forward_hook(record) for layer in layers]
    try:
        with torch.no_grad(), buffers_kept(model):
            model.train()(images)
    finally:
        for hook in hooks:
            hook.remove()
    raw = [seen[layer.convolution] for layer in layers]
    normalized = zip(raw, layers, strict=True)
    return Observed(raw, [each if layer.norm is None else _after(layer.norm, each) for each, layer in normalized])


def drift(before: Moments, after: Moments) -> Drift:
    """Return how far the moments of a layer moved."""
    return Drift(
        ((after.mean - before.mean).abs() / before.std).mean().item(),
        ((after.std - before.std).abs() / before.std).mean().item(),
    )


def dead_share(inputs: Moments) -> float:
    """Return the share of feature maps whose ReLU gives 0 at every position of every image."""
    return (inputs.most <= 0).double().mean().item()


def largest_stable_rate(weight: Tensor, loss: Callable[[], float]) -> float:
    """Return the largest rate at which a gradient step of this weight alone does not raise the loss.

    The rates 2^-6, 2^-5, ... are tried up to the first that raises it. The weight stays as it is.

    Arguments:
        weight: a parameter, with the gradient of the loss in `grad`.
        loss: computes the loss, the same each time.

    Returns:
        The rate, or 0 if the first one raises the loss.
    """
    if weight.grad is None:
        raise ValueError("the weight has no gradient; call backward first")
    start, kept, best = loss(), weight.detach().clone(), 0.0
    with torch.no_grad():
        try:
            for rate in (LEAST_RATE * 2**doubling for doubling in range(DOUBLINGS)):
                weight.copy_(kept - rate * weight.grad)
                if not loss() <= start:  # also if it is NaN
                    break
                best = rate
        finally:
            weight.copy_(kept)
    return best


def _moments(values: Tensor) -> Moments:
    """Return the moments of (N, C, H, W) for each feature map."""
    maps = values.detach().double().transpose(0, 1).flatten(1)
    return Moments(maps.mean(1), maps.std(1, correction=0), maps.amin(1), maps.amax(1))


def _after(norm: BatchNorm2d, raw: Moments) -> Moments:
    """Return the moments of gamma * (x - mean) / sqrt(var + eps) + beta, for the moments of x."""
    assert norm.weight is not None
    assert norm.bias is not None
    gamma, beta = norm.weight.detach().double(), norm.bias.detach().double()
    scale = gamma / (raw.std**2 + norm.eps).sqrt()
    ends = torch.stack([scale * (raw.least - raw.mean) + beta, scale * (raw.most - raw.mean) + beta])
    return Moments(beta, scale.abs() * raw.std, ends.amin(0), ends.amax(0))


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Restore the model's buffers and its mode at the end."""
    kept, training = [buffer.clone() for buffer in model.buffers()], model.training
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in zip(model.buffers(), kept, strict=True):
                buffer.copy_(before)
        model.train(training)
