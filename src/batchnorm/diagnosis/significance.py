"""Tell a difference from chance, for thousands of channels at once."""

from __future__ import annotations

from statistics import NormalDist

import torch
from torch import Tensor

FALSE_ALARMS = 1e-3  # the chance that any of the channels tested together passes its test by luck


def critical(tests: int) -> float:
    """Return how many standard errors one of `tests` differences must have, two-sided (Bonferroni).

    For mean and variance of 1,000 channels that is 5.0, of 100,000 it is 5.8.
    """
    return -NormalDist().inv_cdf(FALSE_ALARMS / (2 * max(tests, 1)))


def z_of_t(t: Tensor, degrees: float) -> Tensor:
    """Return the normal deviate of a Student t with these degrees of freedom, by Wallace's approximation (1959).

    With few examples the standard error is itself uncertain: t = 6 at 3 degrees is only z = 2.6.
    """
    factor = (8 * degrees + 1) / (8 * degrees + 3)
    return t.sign() * factor * (degrees * torch.log1p(t.square() / degrees)).sqrt()


def z_of_f(f: Tensor, between: float, within: float) -> Tensor:
    """Return the normal deviate of an F ratio, by Paulson's approximation (1942): a normal law of cube roots.

    Arguments:
        f: the ratio of two variances, (C,).
        between: the degrees of freedom of the numerator.
        within: the degrees of freedom of the denominator.
    """
    a, b = 2 / (9 * between), 2 / (9 * within)
    root = f.clamp_min(0).pow(1 / 3)
    return ((1 - b) * root - (1 - a)) / (b * root.square() + a).sqrt()
