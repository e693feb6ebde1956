"""Normalization of pixels."""

import torch

from batchnorm.paper.images.normalize import normalize


def test_gray_pixels_are_normalized_by_fashion_mnists_statistics():
    white = normalize(torch.full((2, 1, 1, 1), 255, dtype=torch.uint8))
    torch.testing.assert_close(white, torch.full((2, 1, 1, 1), (1 - 0.2860) / 0.3530))


def test_color_pixels_are_normalized_by_imagenets_statistics():
    black = normalize(torch.zeros(3, 2, 2, dtype=torch.uint8))[:, 0, 0]
    torch.testing.assert_close(black, torch.tensor([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]))
