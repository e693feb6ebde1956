"""Normalize pixels by the mean and deviation of a training set."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class ChannelStatistics(NamedTuple):
    """Mean and standard deviation of each channel, for pixels from 0 to 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


IMAGENET = ChannelStatistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
FASHION_MNIST = ChannelStatistics((0.2860,), (0.3530,))
BY_CHANNELS = {3: IMAGENET, 1: FASHION_MNIST}


def normalize(images: Tensor) -> Tensor:
    """Return uint8 images (..., C, H, W) as float32 with a mean near 0 and a variance near 1.

    The statistics are ImageNet's for three channels, and Fashion-MNIST's for one.
    """
    statistics = BY_CHANNELS[images.shape[-3]]
    mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in statistics)
    return (images / 255 - mean) / std
