"""Order the training examples into mini-batches."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...errors import BatchNormError


class Batches:
    """The examples of each mini-batch, a function of the seed and the step alone: a run can resume at any step.

    Every epoch is a new permutation of all examples. The last examples, fewer than a batch, are dropped.

    Arguments:
        examples: the number of training examples.
        batch_size: examples in a mini-batch, 2 or more.
        seed: seed of the permutations.

    Raises:
        BatchNormError: the batch size is below 2 or above `examples`.
    """

    def __init__(self, examples: int, batch_size: int, seed: int) -> None:
        if not 2 <= batch_size <= examples:
            raise BatchNormError(
                f"batch size {batch_size} does not fit {examples} training examples; "
                "batch normalization needs at least 2 a batch"
            )
        self.examples, self.batch_size, self.seed = examples, batch_size, seed
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.long)

    def indices(self, step: int) -> Tensor:
        """Return the example numbers of mini-batch `step`, counted from 0: (batch_size,), int64."""
        epoch, batch = divmod(step, self.examples // self.batch_size)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = torch.from_numpy(np.random.default_rng([self.seed, epoch]).permutation(self.examples))
        return self._order[batch * self.batch_size : (batch + 1) * self.batch_size]
