"""Training's distortions, the single crop, and the 144."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from torchvision.transforms.v2 import functional as F

from batchnorm.paper.images import distortions
from batchnorm.paper.images.distortions import Distort, centre_crop, crops_144, normalised


def picture(height, width, channels=3):
    """An image whose pixels tell where they are: red grows to the right, green downwards."""
    y, x = torch.meshgrid(torch.linspace(0, 255, height), torch.linspace(0, 255, width), indexing="ij")
    return torch.stack([x, y, torch.full_like(x, 128)])[:channels].to(torch.uint8)


def test_the_144_crops_are_those_of_googlenet(tmp_path):
    image = picture(300, 400)
    crops = crops_144(image)
    assert crops.shape == (144, 3, 224, 224)
    expected = []
    for side in (256, 288, 320, 352):
        scaled = F.resize(image, [side, round(side * 4 / 3 - 0.5)], antialias=True)  # the shorter side is the height
        width = scaled.shape[2]
        for left in (0, (width - side) // 2, width - side):
            square = scaled[:, :, left : left + side]
            cuts = [(0, 0), (0, side - 224), (side - 224, 0), (side - 224, side - 224)]
            middle = round((side - 224) / 2)
            for top, start in [*cuts, (middle, middle)]:
                expected.append(square[:, top : top + 224, start : start + 224])
            expected.append(F.resize(square, [224, 224], antialias=True))
    assert len(expected) == 72
    for number, crop in enumerate(expected):
        assert crops[2 * number].equal(crop), number
        assert crops[2 * number + 1].equal(crop.flip(2)), number
    sheet = torch.cat([torch.cat(list(row), 2) for row in crops.unflatten(0, (12, 12))], 1)
    Image.fromarray(sheet[:, ::8, ::8].permute(1, 2, 0).numpy()).save(tmp_path / "crops.png")
    assert len({crop.numpy().tobytes() for crop in crops}) == 144


def test_a_tall_image_is_cut_into_top_centre_and_bottom():
    squares = list(distortions._squares(picture(448, 224), 224))
    assert [tuple(square.shape[1:]) for square in squares] == [(s, s) for s in (256, 288, 320, 352) for _ in range(3)]
    greens = [square[1].float().mean().item() for square in squares[:3]]
    assert greens == pytest.approx([64, 127, 191], abs=2)


def test_the_crops_of_small_images_scale_with_them():
    crops = crops_144(picture(28, 28, 1), 28)
    assert crops.shape == (144, 1, 28, 28)
    assert [square.shape[1] for square in distortions._squares(picture(28, 28, 1), 28)][::3] == [32, 36, 40, 44]


def test_the_single_crop_is_the_centre_of_the_image_at_256():
    crop = centre_crop(picture(512, 1024), 224)
    expected = F.resize(picture(512, 1024), [256, 512], antialias=True)[:, 16:240, 144:368]
    assert crop.equal(expected)
    small = picture(28, 28, 1)
    assert centre_crop(small, 28).equal(small)


def test_normalised_pixels_have_the_training_sets_mean_and_spread():
    torch.testing.assert_close(
        normalised(torch.full((2, 1, 1, 1), 255, dtype=torch.uint8)),
        torch.full((2, 1, 1, 1), (1 - 0.2860) / 0.3530),
    )
    black = normalised(torch.zeros(3, 2, 2, dtype=torch.uint8))[:, 0, 0]
    torch.testing.assert_close(black, torch.tensor([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]))


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
    places = np.array([distortions._patch_place(300, 400, rng) for _ in range(3000)])
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


def test_a_patch_that_never_fits_is_the_largest_of_fair_aspect():
    assert distortions._patch_place(10, 1000, np.random.default_rng(0)) == (0, 493, 10, 13)


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


def enhanced(image, factors, order):
    """The same by Pillow, one after the other; changes in the order brightness, contrast, saturation are 0, 1, 2."""
    for change in order:
        enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[change]
        image = enhance(image).enhance(factors.pop(0))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.mark.parametrize("seed", range(12))
def test_photometric_distortions_are_pillows(seed):
    """To 5 of 255: Pillow cuts off up to 1 after each change, which later ones enlarge by up to 1.5 each.

    The pixels are of the middle of the range, so that Pillow clips none after the first changes.
    """
    image = torch.from_numpy(np.random.default_rng(100 + seed).integers(90, 140, (3, 40, 50), dtype=np.uint8))
    rng = np.random.default_rng(seed)
    order, factors = rng.permutation(3), [rng.uniform(0.5, 1.5) for _ in range(3)]
    ours = distortions._photometric(image, 0.5, 0.0, np.random.default_rng(seed))
    pillows = enhanced(Image.fromarray(image.permute(1, 2, 0).numpy()), factors, order)
    assert (ours.int() - pillows.int()).abs().max() <= 5


def test_colour_noise_moves_all_pixels_alike_and_mostly_along_grey():
    image = torch.full((3, 8, 8), 128, dtype=torch.uint8)
    shifts = []
    for seed in range(400):
        noisy = distortions._photometric(image, 0.0, 0.1, np.random.default_rng(seed)).float() - 128
        assert (noisy == noisy[:, :1, :1]).all()
        shifts.append(noisy[:, 0, 0].numpy())
    # 0.1 * 0.2175 * 255 = 5.5 along the first component, which is nearly grey; of 400 draws known to 3.5 %.
    values, vectors = np.linalg.eigh(np.cov(np.array(shifts).T))
    assert np.sqrt(values[-1]) == pytest.approx(5.55, rel=0.12)
    assert abs(vectors[:, -1].sum()) == pytest.approx(np.sqrt(3), abs=0.01)


def test_photometric_distortions_clip():
    white = torch.full((3, 8, 8), 255, dtype=torch.uint8)
    seen = {int(distortions._photometric(white, 0.5, 0.0, np.random.default_rng(seed)).max()) for seed in range(20)}
    assert max(seen) == 255
    assert min(seen) > 100


@pytest.mark.parametrize("mode", distortions.INTERPOLATIONS)
def test_each_interpolation_keeps_the_mean(mode, monkeypatch):
    monkeypatch.setattr(distortions, "INTERPOLATIONS", (mode,) * 4)
    patch = distortions._patch(picture(300, 300), 100, "strong", np.random.default_rng(0))
    top, left, height, width = distortions._patch_place(300, 300, np.random.default_rng(0))
    expected = picture(300, 300)[:, top : top + height, left : left + width].float().mean((1, 2))
    torch.testing.assert_close(patch.float().mean((1, 2)), expected, atol=1.5, rtol=0)  # of 255: half a patch's pixel


def test_grey_photographs_are_distorted_too():
    images = [Distort(64, "strong")(picture(90, 90, 1), np.random.default_rng(seed)) for seed in range(4)]
    assert all(image.shape == (1, 64, 64) for image in images)
    assert len({image.numpy().tobytes() for image in images}) == 4
