"""Photometric distortions: random brightness, contrast, saturation and color noise."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# Principal components of ImageNet's colors (Krizhevsky et al., 2012): a row a channel, a column a component.
COLOR_VALUES = np.array([0.2175, 0.0188, 0.0045])
COLOR_VECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601: the gray of a color, from red, green and blue


class ColorMap(NamedTuple):
    """An affine map of colors: x becomes matrix @ x + offset, (C, C) and (C,)."""

    matrix: np.ndarray
    offset: np.ndarray


def distort_colors(image: Tensor, spread: float, noise: float, rng: np.random.Generator) -> Tensor:
    """Return the uint8 image (C, H, W) with random brightness, contrast, saturation and color noise.

    Every change maps a color x to Ax + b, so their composition does too. One pass over the pixels applies it. Rounding
    and clipping to 0-255 happen once.

    Arguments:
        image: the image.
        spread: brightness, contrast and saturation change by factors in 1 - spread to 1 + spread, in random order.
        noise: standard deviation of the noise along the color components; all pixels get the same noise.
        rng: the random generator.
    """
    pixels = image.flatten(1).float()
    matrix, offset = _random_color_map(pixels.mean(1).double().numpy(), spread, rng)
    if len(image) == 3:
        offset = offset + 255 * COLOR_VECTORS @ (rng.normal(0, noise, 3) * COLOR_VALUES)
    mapped = torch.addmm(torch.from_numpy(offset).float()[:, None], torch.from_numpy(matrix).float(), pixels)
    return mapped.round_().clamp_(0, 255).to(torch.uint8).view_as(image)


def _random_color_map(mean: np.ndarray, spread: float, rng: np.random.Generator) -> ColorMap:
    """Draw the color map for an image with this mean color."""
    gray = np.ones((len(mean), 1)) * (LUMA if len(mean) == 3 else 1.0)  # Maps each channel to the luma.
    identity = np.eye(len(mean))
    matrix, offset = identity, np.zeros(len(mean))
    for change in rng.permutation(3):
        factor = rng.uniform(1 - spread, 1 + spread)
        if change == 0:  # Brightness: away from black.
            matrix, offset = factor * matrix, factor * offset
        elif change == 1:  # Contrast: away from the mean gray.
            matrix, offset = factor * matrix, (1 - factor) * gray @ matrix @ mean
        else:  # Saturation: away from each pixel's gray. The offset is gray already.
            matrix = (factor * identity + (1 - factor) * gray) @ matrix
    return ColorMap(matrix, offset)
