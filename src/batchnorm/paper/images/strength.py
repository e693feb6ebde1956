"""The strengths of training's distortions. This file does not import torch, so that settings can use it."""

from typing import Literal, NamedTuple

Strength = Literal["strong", "weak", "none"]


class Photometric(NamedTuple):
    """Photometric distortions: their factors lie within 1 - spread to 1 + spread; noise is a standard deviation."""

    spread: float
    noise: float


# GoogLeNet has the photometric distortions "by Andrew Howard". Howard (2013) changes brightness, contrast and
# saturation by factors in 0.5 to 1.5. Krizhevsky (2012) adds noise of standard deviation 0.1 along the principal
# components of ImageNet's colors. The recipe reduces them (Sec. 4.2.1) without a number: we take a quarter.
PHOTOMETRIC = {"strong": Photometric(0.5, 0.1), "weak": Photometric(0.125, 0.025)}
