"""Crops for evaluation: the center of an image, or the paper's 144 crops."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

# The shorter sides of the images that the 144 crops are cut from, for crops of 224.
# The first one is also that of the single crop.
SCALES = (256, 288, 320, 352)
SMALLEST_PHOTOGRAPH = 64  # Smaller images are resized whole, not cropped.


def center_crop(image: Tensor, size: int) -> Tensor:
    """Return the single crop of an image: (C, size, size).

    It is the center of the image, resized to a shorter side of 256 for crops of 224.
    For a size below 64 it is the whole image.
    """
    if size < SMALLEST_PHOTOGRAPH:
        return resize(image, size)
    return F.center_crop(_resize_shorter_side(image, _scaled(SCALES[0], size)), [size, size])


def crops_144(image: Tensor, size: int) -> Tensor:
    """Return the paper's crops of one image: (144, C, size, size), uint8 (GoogLeNet, Sec. 7).

    - 4 scales: a shorter side of 256, 288, 320, 352 for crops of 224, in proportion for other sizes.
    - 3 squares of each: left, center and right; top, center and bottom of a tall image.
    - 6 crops of each: the four corners, the center, and the whole square resized.
    - 2 of each: as it is, and mirrored.
    """
    crops = torch.stack([crop for square in squares(image, size) for crop in _six_crops(square, size)])
    return torch.stack([crops, crops.flip(3)], 1).flatten(0, 1)


def squares(image: Tensor, size: int) -> Iterator[Tensor]:
    """Yield the 12 squares that `crops_144` cuts: three at each scale."""
    for scale in SCALES:
        scaled = _resize_shorter_side(image, _scaled(scale, size))
        side, long = min(scaled.shape[1:]), max(scaled.shape[1:])
        for first in (0, (long - side) // 2, long - side):
            tall = scaled.shape[1] > scaled.shape[2]
            yield scaled[:, first : first + side] if tall else scaled[:, :, first : first + side]


def resize(image: Tensor, size: int) -> Tensor:
    """Return the image at size x size, itself if it has that size."""
    return image if image.shape[1:] == (size, size) else F.resize(image, [size, size], antialias=True)


def _six_crops(square: Tensor, size: int) -> list[Tensor]:
    end = square.shape[1] - size
    corners = [square[:, y : y + size, x : x + size] for y in (0, end) for x in (0, end)]
    return [*corners, F.center_crop(square, [size, size]), F.resize(square, [size, size], antialias=True)]


def _resize_shorter_side(image: Tensor, side: int) -> Tensor:
    return F.resize(image, [side], antialias=True)


def _scaled(side: int, size: int) -> int:
    return round(side * size / 224)
