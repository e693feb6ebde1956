"""The network of Sec. 4.1, and what is measured of it."""

import math

import pytest
import torch
from torch import nn

import batchnorm as bn
from batchnorm.paper.mnist.data import load_mnist
from batchnorm.paper.mnist.measure import measure
from batchnorm.paper.mnist.network import network
from batchnorm.paper.mnist.records import ARMS


def test_the_network_is_the_papers():
    plain = network("plain", 0.1, 1)
    assert [type(layer) for layer in plain] == [nn.Linear, nn.Sigmoid] * 3 + [nn.Linear]
    assert [layer.out_features for layer in plain if isinstance(layer, nn.Linear)] == [100, 100, 100, 10]
    normalized = network("bn", 0.1, 1)
    assert [type(layer) for layer in normalized] == [nn.Linear, bn.BatchNorm1d, nn.Sigmoid] * 3 + [nn.Linear]
    # BN's beta takes the role of the bias before it; the last layer has no BN and keeps its own.
    assert [layer.bias is not None for layer in normalized if isinstance(layer, nn.Linear)] == [False] * 3 + [True]


def test_both_arms_start_from_the_same_small_gaussian_weights():
    weights = [[p for p in network(arm, 0.03, 7).parameters() if p.dim() == 2] for arm in ARMS]
    for plain, normalized in zip(*weights, strict=True):
        assert plain.equal(normalized)
    assert weights[0][0].std().item() == pytest.approx(0.03, rel=0.01)  # of 78,400 draws
    assert not weights[0][0].equal(next(network("plain", 0.03, 8).parameters()))


def test_measure_uses_population_statistics_and_the_last_sigmoids_input():
    model = network("bn", 0.1, 1)
    for layer in model:
        if isinstance(layer, bn.BatchNorm1d):
            layer(torch.randn(50, 100) * 3 + 1)
    model.eval()
    data = load_mnist()
    images, labels = data.test_images[:500].float(), data.test_labels[:500]
    entering = []
    handle = [layer for layer in model if isinstance(layer, nn.Sigmoid)][-1].register_forward_pre_hook(
        lambda _, args: entering.append(args[0][:, 4])
    )
    with torch.no_grad():
        accuracy = (model(images).argmax(1) == labels).float().mean().item()
        handle.remove()
        row = measure(model, images, labels, unit=4)
        alone = measure(model, images[:1], labels[:1], unit=4)
    assert row["test_accuracy"] == pytest.approx(accuracy)
    values = sorted(entering[0].tolist())
    for name, fraction in (("p15", 0.15), ("p50", 0.5), ("p85", 0.85)):
        position = fraction * 499
        below, above = values[math.floor(position)], values[math.ceil(position)]
        assert below - 1e-5 <= row[name] <= above + 1e-5
    # One image alone gets what it gets among 500: nothing depends on the test batch.
    assert alone["p50"] == pytest.approx(entering[0][0].item(), rel=1e-5)
