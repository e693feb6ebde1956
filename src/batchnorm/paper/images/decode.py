"""Decode image files to pixels."""

from __future__ import annotations

import io
import warnings

import numpy as np
import torch
from torch import Tensor

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
MOST_BYTES = 2**28  # of a file
MOST_PIXELS = 64_000_000  # 192 MB as RGB, for every worker. Cameras for professionals make 60 million.
# Not all of Pillow's: for EPS it would start Ghostscript.
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")


def decode(content: bytes) -> Tensor:
    """Return an image file's content as RGB pixels: (3, H, W), uint8. Convert other modes (gray, CMYK, palette).

    Raises:
        ValueError: the content is not an image, is truncated, or has more than 64 million pixels.
    """
    # Pillow is an extra, so import it only here. Torchvision's decoder gives the same pixels in two thirds of the time,
    # but is deprecated.
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of size, which is checked here, and of tags that no pixel depends on
            with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
                _check_pixels(image.width * image.height)
                pixels = np.array(image.convert("RGB"))
    except UnidentifiedImageError as error:  # Its message names an object in memory.
        raise ValueError("not an image, or of an unknown format") from error
    except Exception as error:  # Decoders raise any type of error on damaged bytes.
        raise ValueError(str(error)) from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _check_pixels(pixels: int) -> None:
    if pixels > MOST_PIXELS:
        raise ValueError(f"{pixels:,} pixels; wanted at most {MOST_PIXELS:,}")
