"""An image file's content as pixels."""

from __future__ import annotations

import io

import numpy as np
import torch
from torch import Tensor

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's


class DamagedImage(Exception):
    """One image that can't be read; its name and why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)  # both, since workers send it pickled
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def decode(content: bytes) -> Tensor:
    """An image file's content as (3, H, W), uint8, whatever its mode (grey, CMYK, palette).

    Raises:
        ValueError: it is no image, or is truncated.
    """
    # An extra, which the other experiments do without. (Torchvision's decoder takes two thirds of its time for the same
    # pixels, and is deprecated.)
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)) as image:
            pixels = np.array(image.convert("RGB"))
    except UnidentifiedImageError as error:  # it would name an object in memory
        raise ValueError("not an image, or of an unknown format") from error
    except Exception as error:  # broken bytes make a decoder raise anything
        raise ValueError(str(error)) from error
    return torch.from_numpy(pixels).permute(2, 0, 1)
