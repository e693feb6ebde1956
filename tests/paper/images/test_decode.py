"""Image files become RGB pixels."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from support.jpegs import jpeg

from batchnorm.paper.images.decode import decode


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "1"])
def test_any_mode_becomes_rgb(mode):
    file = io.BytesIO()
    picture = Image.new("RGB", (9, 7), (255, 255, 255)).convert(mode)
    picture.save(file, "JPEG" if mode in ("L", "CMYK") else "PNG")
    image = decode(file.getvalue())
    assert (image.shape, image.dtype) == ((3, 7, 9), torch.uint8)
    assert image.float().mean() > 250


WHOLE = jpeg(3, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (WHOLE[: len(WHOLE) // 2], "truncated"),
        (b"not an image", "not an image, or of an unknown format"),
        (b"", "not an image, or of an unknown format"),
    ],
    ids=["truncated", "text", "empty"],
)
def test_damaged_content_is_an_error(content, message):
    with pytest.raises(ValueError, match=message):
        decode(content)


def test_an_image_too_large_to_be_one_is_an_error(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow's guard. Its error is neither OSError nor ValueError.
    with pytest.raises(ValueError, match="decompression bomb"):
        decode(WHOLE)
