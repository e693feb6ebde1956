"""`DoctorRow`: what was measured of one BN layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .profile import Profile

DoctorOutcome = Literal["error", "warning", "note", "healthy"]


@dataclass(frozen=True)
class DoctorRow:
    """Tell what was measured of one BN layer.

    Arguments:
        name: the name of the layer in the network.
        outcome: the worst severity of the findings that name the layer, or "healthy".
        reason: the checks that found something, or "".
        values: the fewest values per channel in one batch; 0 if no batch reached the layer.
        mean_shift: the largest |running mean - mean| of a channel, in standard deviations.
        std_low: the smallest ratio of the running standard deviation to the data's.
        std_high: the largest of the same ratio.
        distance: the largest distance of a running statistic from the data's, in standard errors.
        noise: the spread of the standard deviation from batch to batch, relative, of the median channel.
        gap: how far the layer's normalized input in eval is from mean 0 and deviation 1: the root mean square over
            channels, of what it is not in training too.
        profile: the values per channel, for the page.
    """

    name: str
    outcome: DoctorOutcome
    reason: str = ""
    values: int = 0
    mean_shift: float | None = None
    std_low: float | None = None
    std_high: float | None = None
    distance: float | None = None
    noise: float | None = None
    gap: float | None = None
    profile: Profile | None = field(default=None, repr=False, compare=False)
