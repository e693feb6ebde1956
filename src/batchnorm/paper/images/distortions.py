"""What an image goes through before the network: distortions in training, one crop or 144 in evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import exp, log, sqrt

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from .strength import PHOTOMETRIC, Strength

# Going deeper with convolutions (Szegedy et al., 2014), Sec. 6.
PATCH_AREA = (0.08, 1.0)
PATCH_ASPECT = (3 / 4, 4 / 3)
INTERPOLATIONS = ("bilinear", "area", "nearest", "bicubic")
COLOUR_VALUES = np.array([0.2175, 0.0188, 0.0045])
COLOUR_VECTORS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)  # a row a channel, a column a component
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601's, of red, green and blue: the grey of a colour
# Of ImageNet's and Fashion-MNIST's training images, by channel, for pixels from 0 to 1.
MEAN_STD = {3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), 1: ((0.2860,), (0.3530,))}
# The shorter sides of the 144 crops, for crops of 224; the first is also that of the single crop.
SCALES = (256, 288, 320, 352)
SMALL = 64  # below it an image is no photograph: it is shifted by up to SHIFT pixels, not cut into patches
SHIFT = 2


@dataclass(frozen=True)
class Distort:
    """Training's distortions: an image (C, H, W), uint8, and a random generator -> (C, size, size), uint8.

    strong: GoogLeNet's: a patch of 8 % to 100 % of the area, of aspect 3/4 to 4/3, mirrored or not, resized by a random
    interpolation, its brightness, contrast, saturation and colours changed. weak: the same patches, one interpolation,
    a quarter of the change. none: the centre. Images for sizes below 64 are scaled down with them: strong shifts by up
    to 2 pixels and mirrors, weak mirrors.
    """

    size: int
    strength: Strength

    def __call__(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        if self.strength == "none":
            return centre_crop(image, self.size)
        if self.size < SMALL:
            image = (
                _shifted(_resized(image, self.size), rng) if self.strength == "strong" else _resized(image, self.size)
            )
        else:
            image = _photometric(_patch(image, self.size, self.strength, rng), *PHOTOMETRIC[self.strength], rng)
        return image.flip(2) if rng.random() < 0.5 else image


def normalised(images: Tensor) -> Tensor:
    """(..., C, H, W), uint8 -> float32 of about mean 0 and variance 1 over a training set."""
    mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in MEAN_STD[images.shape[-3]])
    return (images / 255 - mean) / std


def centre_crop(image: Tensor, size: int) -> Tensor:
    """The single crop: the centre, of the image at a shorter side of 256 for crops of 224; small images as they are."""
    if size < SMALL:
        return _resized(image, size)
    image = _shorter_side(image, _scaled(SCALES[0], size))
    return F.center_crop(image, [size, size])


def crops_144(image: Tensor, size: int = 224) -> Tensor:
    """The paper's crops of one image: (144, C, size, size), uint8 (GoogLeNet, Sec. 7).

    Shorter side 256, 288, 320, 352 (for 224; in proportion for other sizes); the left, centre and right square (of a
    tall image the top, centre and bottom); of each the four corners, the centre, and the square itself resized; each
    also mirrored.
    """
    crops = torch.stack([crop for square in _squares(image, size) for crop in _six(square, size)])
    return torch.stack([crops, crops.flip(3)], 1).flatten(0, 1)


def _squares(image: Tensor, size: int) -> Iterator[Tensor]:
    for scale in SCALES:
        scaled = _shorter_side(image, _scaled(scale, size))
        side, long = min(scaled.shape[1:]), max(scaled.shape[1:])
        for first in (0, (long - side) // 2, long - side):
            tall = scaled.shape[1] > scaled.shape[2]
            yield scaled[:, first : first + side] if tall else scaled[:, :, first : first + side]


def _six(square: Tensor, size: int) -> list[Tensor]:
    end = square.shape[1] - size
    corners = [square[:, y : y + size, x : x + size] for y in (0, end) for x in (0, end)]
    return [*corners, F.center_crop(square, [size, size]), F.resize(square, [size, size], antialias=True)]


def _patch(image: Tensor, size: int, strength: Strength, rng: np.random.Generator) -> Tensor:
    top, left, height, width = _patch_place(image.shape[1], image.shape[2], rng)
    patch = image[:, top : top + height, left : left + width]
    mode = INTERPOLATIONS[rng.integers(4)] if strength == "strong" else "bilinear"
    if mode == "area":  # unknown to torchvision
        return interpolate(patch[None].float(), (size, size), mode="area")[0].round().to(torch.uint8)
    return F.resize(patch, [size, size], InterpolationMode(mode), antialias=mode != "nearest")


def _patch_place(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a patch; after ten draws that stick out, the largest centred one of fair aspect."""
    for _ in range(10):
        area = height * width * rng.uniform(*PATCH_AREA)
        aspect = exp(rng.uniform(log(PATCH_ASPECT[0]), log(PATCH_ASPECT[1])))
        h, w = round(sqrt(area / aspect)), round(sqrt(area * aspect))
        if 0 < h <= height and 0 < w <= width:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    h = min(height, round(width / PATCH_ASPECT[0]))
    w = min(width, round(height * PATCH_ASPECT[1]))
    return (height - h) // 2, (width - w) // 2, h, w


def _photometric(image: Tensor, spread: float, noise: float, rng: np.random.Generator) -> Tensor:
    """Brightness, contrast and saturation changed, in random order; then noise on all colours alike.

    Each maps a colour x to Ax + b, and so do all together: one pass over the pixels, rounded and clipped to 0-255 once.
    """
    pixels = image.flatten(1).float()
    matrix, offset = _colour_map(pixels.mean(1).double().numpy(), spread, rng)
    if len(image) == 3:
        offset = offset + 255 * COLOUR_VECTORS @ (rng.normal(0, noise, 3) * COLOUR_VALUES)
    mapped = torch.addmm(torch.from_numpy(offset).float()[:, None], torch.from_numpy(matrix).float(), pixels)
    return mapped.round_().clamp_(0, 255).to(torch.uint8).view_as(image)


def _colour_map(mean: np.ndarray, spread: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(A, b) of an image with this mean colour: (C, C), (C,)."""
    grey = np.ones((len(mean), 1)) * (LUMA if len(mean) == 3 else 1.0)  # each channel becomes the luma
    identity = np.eye(len(mean))
    matrix, offset = identity, np.zeros(len(mean))
    for change in rng.permutation(3):
        factor = rng.uniform(1 - spread, 1 + spread)
        if change == 0:  # brightness: away from black
            matrix, offset = factor * matrix, factor * offset
        elif change == 1:  # contrast: away from the mean grey
            matrix, offset = factor * matrix, (1 - factor) * grey @ matrix @ mean
        else:  # saturation: away from each pixel's grey; the offset is one itself
            matrix = (factor * identity + (1 - factor) * grey) @ matrix
    return matrix, offset


def _shifted(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Moved by up to SHIFT pixels each way; black comes in."""
    down, right = rng.integers(-SHIFT, SHIFT + 1, size=2).tolist()
    height, width = image.shape[1:]
    source = image.numpy()  # of so small an image numpy makes less to do
    shifted = np.zeros_like(source)
    shifted[:, max(0, down) : height + down, max(0, right) : width + right] = source[
        :, max(0, -down) : height - down, max(0, -right) : width - right
    ]
    return torch.from_numpy(shifted)


def _resized(image: Tensor, size: int) -> Tensor:
    return image if image.shape[1:] == (size, size) else F.resize(image, [size, size], antialias=True)


def _shorter_side(image: Tensor, side: int) -> Tensor:
    return F.resize(image, [side], antialias=True)


def _scaled(side: int, size: int) -> int:
    return round(side * size / 224)
