"""Build the networks of a trial: without and with BN, from the same weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from ...algorithm2.choices import Removable
from ...algorithm2.freeze import freeze
from ...algorithm2.insert import InsertResult, insert
from ...errors import BatchNormError, first_few
from ...graph.batches import check_module, in_eval, run_batch
from ...torch_private import AnyBatchNorm
from .data import copied

Factory = Callable[[], nn.Module]


class Networks(NamedTuple):
    """Make the two networks of a trial.

    Arguments:
        factory: returns a new network, with weights from torch's global generator.
        example: a training batch.
        remove: layers that `insert` removes.
    """

    factory: Factory
    example: Any
    remove: Collection[Removable] = ()

    def build(self, arm: str, seed: int) -> nn.Module:
        """Return the network "plain" or "bn" with the weights of this seed, in training mode.

        A network that has BN is "bn" as it is. As "plain" its BN layers keep gamma and beta, y = gamma x + beta.

        Raises:
            BatchNormError: the factory returns no network, or it does not run, or cannot be traced.
        """
        model = self.fresh(seed)
        if has_norm(model):
            return model if arm == "bn" else without_norm(model)
        return model if arm == "plain" else self.inserted(model).model

    def fresh(self, seed: int) -> nn.Module:
        """Return the network as the factory makes it. It has run once, so that lazy layers have their shapes.

        Raises:
            BatchNormError: the factory returns no network, or it does not run on the example.
        """
        with seeded(seed):
            model = self.factory()
            check_module(model)
            with in_eval(model), torch.no_grad():
                run_batch(model, copied(self.example))
        return model.train()

    def inserted(self, model: nn.Module) -> InsertResult:
        """Insert BN as `bn.insert` does.

        Raises:
            BatchNormError: the network cannot be traced.
        """
        inputs = copied(self.example)[0]
        inputs = (inputs,) if isinstance(inputs, tuple | list) else inputs
        return insert(model, dict(inputs) if isinstance(inputs, Mapping) else inputs, remove=self.remove)

    def why_no_place(self) -> str:
        """Return why the network can have no BN, or "" if it has BN or a place for it.

        Raises:
            BatchNormError: as `build`, or there is BN already and `remove` would do nothing.
        """
        model = self.fresh(1)
        if has_norm(model):
            if self.remove:
                raise BatchNormError("remove works where BN is inserted, and this network has BN already; leave it out")
            return ""
        result = self.inserted(model)
        skipped = [f"{row.name}: {row.reason}" for row in result.rows if row.outcome == "skipped"]
        return "" if result.inserted else first_few(skipped, 2) or "no nonlinearity follows a layer with weights"


def has_norm(model: nn.Module) -> bool:
    """Return True if the network has a BN layer."""
    return any(isinstance(layer, AnyBatchNorm) for layer in model.modules())


@torch.no_grad()
def without_norm(model: nn.Module) -> nn.Module:
    """Take BN out of a network, in place: each layer becomes y = gamma x + beta, whose parameters train on.

    The layers stay, frozen at mean 0 and variance 1 - eps. So subclasses keep the activation inside them, and a
    convolution before BN, which mostly has no bias, keeps the shift.
    """
    for layer in model.modules():
        if isinstance(layer, AnyBatchNorm):
            like = next(layer.parameters(recurse=False), torch.zeros(()))
            layer.running_mean = torch.zeros(layer.num_features, device=like.device)
            layer.running_var = torch.full((layer.num_features,), 1 - layer.eps, device=like.device)
    return freeze(model, affine=False).model


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generators, and restore them at the end."""
    with torch.random.fork_rng():
        seed_generators(seed)
        yield


def seed_generators(seed: int) -> None:
    """Seed torch's global generators, of the CPU and of CUDA devices that are in use.

    `torch.manual_seed` would keep a traceback per call for every kind of device that is not in use.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
