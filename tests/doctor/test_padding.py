"""Padding is told from the frame of pictures, on data sets that had no part in the choice of the limits."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import batchnorm as bn
from batchnorm.paper.mnist.data import load_mnist

COUNT, SIZE = 8, 32  # batches, and examples in each


def mnist(seed):
    """Return digits, which have a frame on all sides."""
    images = load_mnist().train_images[1000 * seed :][: COUNT * SIZE].float()
    return images.view(COUNT, SIZE, 1, 28, 28)


def textured(seed, box):
    """Return empty pictures with a textured rectangle each: `box` draws its top, left, height and width."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(COUNT * SIZE, 1, 28, 28)
    for image in images:
        top, left, height, width = box(generator)
        image[:, top : top + height, left : left + width] = torch.rand(1, height, width, generator=generator) + 0.1
    return images.view(COUNT, SIZE, 1, 28, 28)


def garments(seed):
    """Return textured shapes as Fashion-MNIST has them: tall or broad, in the middle, touching some of the sides."""

    def box(generator):
        height, width = torch.randint(10, 29, (2,), generator=generator).tolist()
        return (28 - height) // 2, (28 - width) // 2, height, width

    return textured(seed, box)


def placed(seed):
    """Return small textured squares anywhere in an empty picture."""
    return textured(seed, lambda generator: (*torch.randint(0, 17, (2,), generator=generator).tolist(), 12, 12))


def photos(seed):
    """Return smooth patterns in noise without a frame, as CIFAR-10 has them."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(COUNT * SIZE, 1, 4, 4, generator=generator)
    fine = 0.2 * torch.randn(COUNT * SIZE, 1, 28, 28, generator=generator)
    return (F.interpolate(coarse, 28, mode="bilinear") + fine).view(COUNT, SIZE, 1, 28, 28)


def padded(batches, share, seed=5):
    """Return the batches with zeros behind the last column, or 0 to twice `share` of the new width, by example."""
    generator = torch.Generator().manual_seed(seed)
    most = round(2 * share * 28 / (1 - share))
    wide = F.pad(batches, (0, most))
    for image in wide.flatten(0, 1):
        begin = 28 + most - int(torch.randint(0, most + 1, (1,), generator=generator))
        image[..., 28:begin] = image[..., : begin - 28].clone() + 0.5  # the picture goes on
    return wide


def found(batches, kernel, stride):
    """Return the severity of the padding found at the first layer, or None."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, kernel, stride, bias=False), nn.BatchNorm2d(6), nn.ReLU())
    findings = bn.doctor(model, list(batches)).findings
    return next((f.severity for f in findings if f.check == "padding"), None)


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (2, 2), (3, 2), (4, 3), (7, 2), (7, 4)])
@pytest.mark.parametrize("data", [mnist, garments, placed, photos])
def test_pictures_with_a_frame_or_without_have_no_padding(data, kernel, stride):
    assert found(data(1), kernel, stride) is None


@pytest.mark.parametrize(
    ("share", "kernel", "severity"), [(0.1, 1, "note"), (0.25, 1, "warning"), (0.15, 3, "note"), (0.3, 3, "warning")]
)
def test_padding_behind_photos_is_found(share, kernel, severity):
    """A kernel of 3 takes two of the constant columns."""
    assert found(padded(photos(2), share), kernel, 1) == severity


@pytest.mark.parametrize("data", [mnist, garments])
def test_padding_larger_than_the_frame_is_found(data):
    assert found(F.pad(data(2), (0, 16)), 3, 1) == "warning"


@pytest.mark.parametrize(("most", "severity"), [(0, None), (6, "note"), (20, "warning")])
def test_padded_sequences(most, severity):
    """Lengths are uniform from 40 - most to 40, so the mean share is most / 80."""
    generator = torch.Generator().manual_seed(3)
    batches = [torch.randn(SIZE, 4, 40, generator=generator) for _ in range(COUNT)]
    for x in batches:
        for each, length in zip(x, torch.randint(40 - most, 41, (SIZE,), generator=generator), strict=True):
            each[:, length:] = 0
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Conv1d(4, 2, 1))
    findings = bn.doctor(model, batches).findings
    assert [f.severity for f in findings if f.check == "padding"] == ([] if severity is None else [severity])


@pytest.mark.parametrize("seed", range(5))
def test_rows_of_a_few_categories_are_alike_by_chance(seed):
    generator = torch.Generator().manual_seed(seed)
    batches = [F.one_hot(torch.randint(3, (64,), generator=generator), 3).float() for _ in range(10)]
    findings = bn.doctor(nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)), batches).findings
    assert [f for f in findings if f.check == "padding"] == []
