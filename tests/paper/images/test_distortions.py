"""Random distortions of training images."""

import numpy as np
import pytest
import torch
from support.pictures import picture

from batchnorm.paper.images import distortions
from batchnorm.paper.images.distortions import Distort, cut_patch, draw_patch


@pytest.mark.parametrize("strength", ["strong", "weak", "none"])
@pytest.mark.parametrize("size", [28, 64, 224])
def test_a_distorted_image_has_the_size_and_is_fixed_by_the_generator(strength, size):
    distort = Distort(size, strength)
    images = [distort(picture(90, 120), np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert images[0].shape == (3, size, size)
    assert images[0].dtype == torch.uint8
    assert images[0].equal(images[1])
    assert images[0].equal(images[2]) == (
        strength == "none" or ((size, strength) == (28, "weak") and same_mirror(1, 2))
    )


def same_mirror(*seeds):
    return len({np.random.default_rng(seed).random() < 0.5 for seed in seeds}) == 1


def test_patches_have_the_area_and_aspect_of_googlenet():
    rng = np.random.default_rng(0)
    places = np.array([draw_patch(300, 400, rng) for _ in range(3000)])
    top, left, height, width = places.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 300).all()
    assert (left + width <= 400).all()
    area, aspect = height * width / (300 * 400), width / height
    assert 0.078 < area.min() < 0.1  # rounding to pixels
    assert area.max() > 0.9
    assert aspect.min() == pytest.approx(3 / 4, abs=0.02)
    assert aspect.max() == pytest.approx(4 / 3, abs=0.02)


def test_a_patch_that_never_fits_is_the_largest_of_an_allowed_aspect():
    assert draw_patch(10, 1000, np.random.default_rng(0)) == (0, 493, 10, 13)


def test_half_of_the_images_are_mirrored():
    distort, rng = Distort(28, "weak"), np.random.default_rng(3)
    image = picture(28, 28, 1)
    mirrored = sum(distort(image, rng).equal(image.flip(2)) for _ in range(400))
    assert 160 < mirrored < 240  # 200, four standard deviations


def test_strong_shifts_small_images_by_up_to_two_pixels():
    distort, rng = Distort(28, "strong"), np.random.default_rng(3)
    image = torch.zeros(1, 28, 28, dtype=torch.uint8)
    image[0, 14, 14] = 1
    places = {tuple(distort(image, rng).nonzero()[0, 1:].tolist()) for _ in range(600)}
    rows, columns = {y for y, _ in places}, {x for _, x in places}
    assert rows == {12, 13, 14, 15, 16}
    assert columns == {11, 12, 13, 14, 15, 16}  # 13 is where the mirror puts 14


def test_weak_photometric_distortions_are_weaker():
    image = torch.full((3, 64, 64), 128, dtype=torch.uint8)
    image[0] = 160

    def spread(strength):
        rng = np.random.default_rng(0)
        return np.std([Distort(64, strength)(image, rng).float().mean().item() for _ in range(200)])

    assert spread("strong") > 2.5 * spread("weak") > 0


@pytest.mark.parametrize("mode", distortions.INTERPOLATIONS)
def test_each_interpolation_keeps_the_mean(mode, monkeypatch):
    monkeypatch.setattr(distortions, "INTERPOLATIONS", (mode,) * 4)
    patch = cut_patch(picture(300, 300), 100, "strong", np.random.default_rng(0))
    top, left, height, width = draw_patch(300, 300, np.random.default_rng(0))
    expected = picture(300, 300)[:, top : top + height, left : left + width].float().mean((1, 2))
    torch.testing.assert_close(
        patch.float().mean((1, 2)), expected, atol=1.5, rtol=0
    )  # Half a pixel of the patch, in 255ths.


def test_gray_photographs_are_distorted_too():
    images = [Distort(64, "strong")(picture(90, 90, 1), np.random.default_rng(seed)) for seed in range(4)]
    assert all(image.shape == (1, 64, 64) for image in images)
    assert len({image.numpy().tobytes() for image in images}) == 4
