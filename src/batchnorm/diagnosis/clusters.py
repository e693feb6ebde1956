"""`Clusters`: the mean of examples that come in batches, with a standard error that batches cannot fool."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..moments import Moments


@dataclass(frozen=True, eq=False)
class Clusters:
    """Hold one number per example and channel, by its moments.

    The positions of one image are no independent values, and the images of one batch may be alike. So the standard
    error comes from the spread between examples, and grows by the design effect if batches differ more than chance.

    Arguments:
        examples: the moments over all examples, (C,).
        within: (C,), the sum of squares within the batches.
        batches: how many batches there are.
    """

    examples: Moments
    within: Tensor
    batches: int

    @classmethod
    def empty(cls, like: Tensor) -> Clusters:
        """Return the clusters of no batch. `like` is any (C,) tensor on the device."""
        moments = Moments.from_batch(like.new_empty(0, len(like)))
        return cls(moments, moments.m2, 0)

    def add(self, values: Tensor) -> Clusters:
        """Return the clusters with one batch more, (N, C)."""
        batch = Moments.from_batch(values)
        return Clusters(self.examples.merge(batch), self.within + batch.m2, self.batches + 1)

    @property
    def degrees(self) -> int:
        """Return the degrees of freedom of the standard error."""
        return max(self.examples.count - 1, 1)

    def spread(self) -> Tensor:
        """Return the variance between examples, (C,)."""
        return self.examples.m2 / self.degrees

    def ratio(self) -> tuple[Tensor, int, int] | None:
        """Return F, the variance between batches over that within them, (C,), and its two degrees of freedom.

        Without at least two batches, and four degrees within them, there is no F.
        """
        between, within = self.batches - 1, self.examples.count - self.batches
        if between < 1 or within < 4:
            return None
        mean_within = self.within / within
        f = (self.examples.m2 - self.within).clamp_min(0) / between / mean_within
        return torch.where(mean_within > 0, f, 1.0), between, within

    def design_effect(self) -> float:
        """Return by how much the variance of the mean exceeds that of independent examples: mean F, at least 1."""
        found = self.ratio()
        return 1.0 if found is None else max(1.0, float(found[0].mean()))

    def standard_error(self) -> Tensor:
        """Return the standard error of the mean, (C,)."""
        return (self.spread() / max(self.examples.count, 1) * self.design_effect()).sqrt()
