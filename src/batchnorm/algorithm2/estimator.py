"""Estimate population statistics from batches (Algorithm 2, line 10)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..moments import Moments
from .choices import Estimator


@dataclass(frozen=True, eq=False)
class Estimate:
    """Hold what both estimators need to know of the inputs of one layer.

    Arguments:
        calls: the number of batches, counted once per call of the layer.
        moments: the moments of all values together.
        mean_of_means: (C,), the mean of the batch means.
        mean_of_vars: (C,), the mean of the unbiased batch variances.
    """

    calls: int
    moments: Moments
    mean_of_means: Tensor
    mean_of_vars: Tensor

    @classmethod
    def empty(cls, like: Tensor) -> Estimate:
        """Return the estimate from no batch.

        Arguments:
            like: (C,), any tensor on the device of the layer.
        """
        moments = Moments.from_batch(like.new_empty(0, len(like)))
        return cls(0, moments, moments.mean, moments.mean)

    @classmethod
    def from_moments(cls, batch: Moments) -> Estimate:
        """Return the estimate from one batch of at least two values per channel."""
        return cls(1, batch, batch.mean, batch.var(unbiased=True))

    def merge(self, other: Estimate) -> Estimate:
        """Return the estimate from the batches of both."""
        calls = self.calls + other.calls
        share = other.calls / max(calls, 1)
        return Estimate(
            calls,
            self.moments.merge(other.moments),
            torch.lerp(self.mean_of_means, other.mean_of_means, share),
            torch.lerp(self.mean_of_vars, other.mean_of_vars, share),
        )

    def mean_and_var(self, estimator: Estimator) -> tuple[Tensor, Tensor]:
        """Return the population mean and the unbiased variance, (C,) each.

        "pooled": of all values together, merged by Chan's formula.
        "paper": E[x] = mean of mu_B and Var[x] = mean of m/(m-1) var_B. Each batch counts alike, with its own m.
        """
        if estimator == "paper":
            return self.mean_of_means, self.mean_of_vars
        return self.moments.mean, self.moments.var(unbiased=True)
