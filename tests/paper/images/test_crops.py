"""The single crop and the paper's 144 crops."""

import pytest
from support.pictures import picture
from torchvision.transforms.v2 import functional as F

from batchnorm.paper.images.crops import center_crop, crops_144, squares


def test_the_144_crops_are_those_of_googlenet():
    image = picture(300, 400)
    crops = crops_144(image, 224)
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
    assert len({crop.numpy().tobytes() for crop in crops}) == 144


def test_a_tall_image_is_cut_into_top_center_and_bottom():
    cut = list(squares(picture(448, 224), 224))
    assert [tuple(square.shape[1:]) for square in cut] == [(s, s) for s in (256, 288, 320, 352) for _ in range(3)]
    greens = [square[1].float().mean().item() for square in cut[:3]]
    assert greens == pytest.approx([64, 127, 191], abs=2)


def test_the_crops_of_small_images_scale_with_them():
    crops = crops_144(picture(28, 28, 1), 28)
    assert crops.shape == (144, 1, 28, 28)
    assert [square.shape[1] for square in squares(picture(28, 28, 1), 28)][::3] == [32, 36, 40, 44]


def test_the_single_crop_is_the_center_of_the_image_at_256():
    crop = center_crop(picture(512, 1024), 224)
    expected = F.resize(picture(512, 1024), [256, 512], antialias=True)[:, 16:240, 144:368]
    assert crop.equal(expected)


def test_the_single_crop_of_a_small_image_is_the_whole_image():
    small = picture(28, 28, 1)
    assert center_crop(small, 28).equal(small)
