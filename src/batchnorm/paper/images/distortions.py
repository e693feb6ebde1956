"""Random distortions of training images: patches, shifts, mirroring and colors."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log, sqrt
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from .crops import SMALLEST_PHOTOGRAPH, center_crop, resize
from .photometric import distort_colors
from .strength import PHOTOMETRIC, Strength

# Going deeper with convolutions (Szegedy et al., 2014), Sec. 6.
PATCH_AREA = (0.08, 1.0)
PATCH_ASPECT = (3 / 4, 4 / 3)
INTERPOLATIONS = ("bilinear", "area", "nearest", "bicubic")
MAX_SHIFT = 2  # pixels, of images below SMALLEST_PHOTOGRAPH


class Patch(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Distort:
    """Distort an image for training: (C, H, W), uint8, and a random generator -> (C, size, size), uint8.

    | strength | at `size` 64 and above | below 64 |
    |---|---|---|
    | strong | a random patch in a random interpolation, random colors, mirroring: GoogLeNet's | a shift, mirroring |
    | weak | the same patches, bilinear, a quarter of the color change, mirroring | mirroring |
    | none | the center crop | the whole image |

    A patch has 8 % to 100 % of the area and an aspect of 3/4 to 4/3. A shift is by up to 2 pixels each way. Half of
    the images are mirrored.
    """

    size: int
    strength: Strength

    def __call__(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        """Return the distorted image."""
        if self.strength == "none":
            return center_crop(image, self.size)
        if self.size >= SMALLEST_PHOTOGRAPH:
            image = distort_colors(cut_patch(image, self.size, self.strength, rng), *PHOTOMETRIC[self.strength], rng)
        else:
            image = resize(image, self.size)
            image = _shift(image, rng) if self.strength == "strong" else image
        return image.flip(2) if rng.random() < 0.5 else image


def cut_patch(image: Tensor, size: int, strength: Strength, rng: np.random.Generator) -> Tensor:
    """Return a random patch of the image, resized to size x size."""
    top, left, height, width = draw_patch(image.shape[1], image.shape[2], rng)
    patch = image[:, top : top + height, left : left + width]
    mode = INTERPOLATIONS[rng.integers(4)] if strength == "strong" else "bilinear"
    if mode == "area":  # Torchvision does not have it.
        return interpolate(patch[None].float(), (size, size), mode="area")[0].round().to(torch.uint8)
    return F.resize(patch, [size, size], InterpolationMode(mode), antialias=mode != "nearest")


def draw_patch(height: int, width: int, rng: np.random.Generator) -> Patch:
    """Draw a random patch. After ten draws that do not fit, return the largest centered one of an allowed aspect."""
    for _ in range(10):
        area = height * width * rng.uniform(*PATCH_AREA)
        aspect = exp(rng.uniform(log(PATCH_ASPECT[0]), log(PATCH_ASPECT[1])))
        h, w = round(sqrt(area / aspect)), round(sqrt(area * aspect))
        if 0 < h <= height and 0 < w <= width:
            return Patch(int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w)
    h = min(height, round(width / PATCH_ASPECT[0]))
    w = min(width, round(height * PATCH_ASPECT[1]))
    return Patch((height - h) // 2, (width - w) // 2, h, w)


def _shift(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Shift the image by up to MAX_SHIFT pixels each way. Fill with black."""
    down, right = rng.integers(-MAX_SHIFT, MAX_SHIFT + 1, size=2).tolist()
    height, width = image.shape[1:]
    source = image.numpy()  # NumPy has less overhead than torch for so small an image.
    shifted = np.zeros_like(source)
    shifted[:, max(0, down) : height + down, max(0, right) : width + right] = source[
        :, max(0, -down) : height - down, max(0, -right) : width - right
    ]
    return torch.from_numpy(shifted)
