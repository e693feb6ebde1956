"""Small networks of three families, trained a little on pictures that a seed makes, for the doctor."""

import copy
import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from timm.models.resnet import BasicBlock, ResNet
from torch import nn
from torchvision.models import MobileNetV2

import batchnorm as bn

CLASSES, SIZE, EXAMPLES = 4, 16, 16
LOSS = nn.CrossEntropyLoss()


class Patient(NamedTuple):
    """A trained network, and the names of three of its BN layers: the first, one in the middle, the last."""

    model: nn.Module
    first: str
    middle: str
    last: str


def pictures(seed, count, examples=EXAMPLES):
    """Return batches of (pictures, labels): a coarse pattern per class, of random strength, in noise."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(CLASSES, 3, 4, 4, generator=torch.Generator().manual_seed(7))
    patterns = nn.functional.interpolate(patterns, SIZE)
    found = []
    for _ in range(count):
        labels = torch.randint(CLASSES, (examples,), generator=generator)
        strength = 1 + 0.2 * torch.randn(examples, 1, 1, 1, generator=generator)
        noise = torch.randn(examples, 3, SIZE, SIZE, generator=generator)
        found.append((patterns[labels] * strength + noise + 0.5, labels))
    return found


def plain():
    layers = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    layers += [nn.Conv2d(8, 12, 3, stride=2, bias=False), nn.BatchNorm2d(12), nn.ReLU()]
    layers += [nn.Conv2d(12, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, CLASSES))


def residual():
    layers, channels = (1, 1, 1, 1), (8, 12, 16, 16)
    model = ResNet(BasicBlock, layers, CLASSES, channels=channels, zero_init_last=False, output_stride=16)  # pyright: ignore[reportArgumentType]
    model.maxpool = nn.Identity()  # the maps stay larger than a point
    return model


def mobile():
    setting = [[2, 8, 1, 2], [2, 12, 2, 2]]
    return MobileNetV2(CLASSES, width_mult=1.0, inverted_residual_setting=setting, dropout=0.0)


FAMILIES: dict[str, Callable[[], nn.Module]] = {"plain": plain, "residual": residual, "mobile": mobile}


def fit(model, batches, lr=0.05, momentum=0.9):
    """Train the network in place, a step a batch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    model.train()
    for x, labels in batches:
        optimizer.zero_grad()
        LOSS(model(x), labels).backward()
        optimizer.step()
    return model


@functools.cache
def _trained(family):
    torch.manual_seed(3)
    return fit(FAMILIES[family](), pictures(1, 30))


def trained(family):
    """Return a network trained for 30 steps, with the running statistics of the training. Everyone gets a copy."""
    model = copy.deepcopy(_trained(family))
    names = [name for name, layer in model.named_modules() if isinstance(layer, nn.BatchNorm2d)]
    return Patient(model, names[0], names[len(names) // 2], names[-1])


def recalibrated(family):
    """Return a trained network with the statistics of its data, in eval mode."""
    patient = trained(family)
    bn.recalibrate(patient.model, pictures(2, 8))
    patient.model.eval()
    return patient
