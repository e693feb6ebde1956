"""Random brightness, contrast, saturation and color noise."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from batchnorm.paper.images.photometric import distort_colors


def enhanced_by_pillow(image, factors, order):
    """Apply the changes by Pillow, one by one: 0 is brightness, 1 contrast, 2 saturation."""
    for change in order:
        enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[change]
        image = enhance(image).enhance(factors.pop(0))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.mark.parametrize("seed", range(12))
def test_the_changes_agree_with_pillow(seed):
    """Compare to 5 of 255: Pillow clips up to 1 after each change, which later changes enlarge by up to 1.5 each.

    The pixels are in the middle of the range, so that Pillow clips nothing else after the first changes.
    """
    image = torch.from_numpy(np.random.default_rng(100 + seed).integers(90, 140, (3, 40, 50), dtype=np.uint8))
    rng = np.random.default_rng(seed)
    order, factors = rng.permutation(3), [rng.uniform(0.5, 1.5) for _ in range(3)]
    ours = distort_colors(image, 0.5, 0.0, np.random.default_rng(seed))
    pillows = enhanced_by_pillow(Image.fromarray(image.permute(1, 2, 0).numpy()), factors, order)
    assert (ours.int() - pillows.int()).abs().max() <= 5


def test_color_noise_shifts_all_pixels_alike_and_mostly_along_gray():
    image = torch.full((3, 8, 8), 128, dtype=torch.uint8)
    shifts = []
    for seed in range(400):
        noisy = distort_colors(image, 0.0, 0.1, np.random.default_rng(seed)).float() - 128
        assert (noisy == noisy[:, :1, :1]).all()
        shifts.append(noisy[:, 0, 0].numpy())
    # The first component is nearly gray: 0.1 * 0.2175 * 255 = 5.55. Of 400 draws it is known to 3.5 %.
    values, vectors = np.linalg.eigh(np.cov(np.array(shifts).T))
    assert np.sqrt(values[-1]) == pytest.approx(5.55, rel=0.12)
    assert abs(vectors[:, -1].sum()) == pytest.approx(np.sqrt(3), abs=0.01)


def test_the_result_is_clipped_to_bytes():
    white = torch.full((3, 8, 8), 255, dtype=torch.uint8)
    seen = {int(distort_colors(white, 0.5, 0.0, np.random.default_rng(seed)).max()) for seed in range(20)}
    assert max(seen) == 255
    assert min(seen) > 100
