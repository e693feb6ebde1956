"""`Examination`: the network, what was measured of it, and the experiments that several checks share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BatchNormError, first_line
from ..graph.compare import copied
from ..graph.network import Network
from ..graph.trace import trace
from ..torch_private import AnyBatchNorm
from .discrepancy import Discrepancy, against_running
from .inputs import example_of
from .measurement import Measured, Measurement
from .proof import Proof, prove
from .significance import critical

Loss = Callable[[Any, Any], Tensor]


@dataclass
class Examination:
    """Hold all that a check may read. No check changes anything in it.

    Arguments:
        given: the network that was given, without its wrapper. Its parameters are those of the optimizer.
        model: a copy of it in the same modes. Experiments copy this one.
        layers: the BN layers of the copy by name.
        held: names of layers that `.train()` leaves in eval mode.
        kept: names of layers that keep their statistics in training: held, or in eval under a training parent.
        training: what the training batches gave.
        evaluation: what the evaluation batches gave, or None.
        loss: called as loss(output, target), or None.
        optimizer: the optimizer of the training, or None.
        unexamined: a sentence per thing that could not be examined.
    """

    given: nn.Module
    model: nn.Module
    layers: dict[str, AnyBatchNorm]
    held: set[str]
    kept: set[str]
    training: Measurement
    evaluation: Measurement | None = None
    loss: Loss | None = None
    optimizer: torch.optim.Optimizer | None = None
    unexamined: list[str] = field(default_factory=list)

    @cached_property
    def limit(self) -> float:
        """Return how many standard errors count: mean and variance of every channel are tested."""
        return critical(2 * sum(layer.num_features for layer in self.layers.values()))

    @cached_property
    def discrepancies(self) -> dict[str, Discrepancy]:
        """Return how far the running statistics are from the data's, by layer. Layers that keep theirs have none."""
        return {
            name: against_running(measured, self.layers[name])
            for name, measured in self.measured.items()
            if self.layers[name].running_mean is not None and name not in self.kept
        }

    @property
    def measured(self) -> dict[str, Measured]:
        """Return what was seen of each layer on the training batches, in the order of the calls."""
        return self.training.layers

    @cached_property
    def recalibrated(self) -> nn.Module:
        """Return a copy of the network with the data's statistics."""
        return with_statistics(self.model, {name: self.measured[name] for name in self.discrepancies})

    @cached_property
    def proof(self) -> Proof | None:
        """Return the outputs in eval before and after recalibration against those in training, or None without any."""
        if not self.discrepancies:
            return None
        return prove(self.model, self.recalibrated, self.kept, self.training.held, self.loss)

    @cached_property
    def network(self) -> Network | None:
        """Return the graph of the eval mode, or None if the network cannot be traced."""
        if not self.training.held:
            return None
        try:
            return trace(self.recalibrated, example_of(self.training.held[0]))
        except BatchNormError as error:
            self.unexamined.append(f"The structure was not examined: {first_line(error)}")
            return None


def held_in_eval(model: nn.Module) -> set[str]:
    """Return the names of modules that stay in eval through `.train()`: frozen, or by a `train` method of their own."""
    trained = copied(model).train()
    return {name for name, module in trained.named_modules() if not module.training}


@torch.no_grad()
def with_statistics(model: nn.Module, measured: dict[str, Measured]) -> nn.Module:
    """Return a copy of the network whose running statistics are the measured ones."""
    copy = copied(model)
    for name, seen in measured.items():
        layer = copy.get_submodule(name)
        layer.get_buffer("running_mean").copy_(seen.mean)
        layer.get_buffer("running_var").copy_(seen.var)
    return copy


def first_of(names: Iterable[str], order: Iterable[str]) -> list[str]:
    """Return the names in the order of the calls."""
    place = {name: index for index, name in enumerate(order)}
    return sorted(names, key=lambda name: place.get(name, len(place)))
