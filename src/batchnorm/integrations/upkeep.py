"""What a trainer's callback does for BN: recalibrate on batches of the training loader, and examine at the end."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from ..algorithm2.freeze import statistics_frozen
from ..algorithm2.recalibrate import recalibrate
from ..diagnosis.doctor import doctor
from ..diagnosis.examination import Loss
from ..diagnosis.result import DoctorResult
from ..errors import BatchNormError
from ..torch_private import AnyBatchNorm


class Upkeep:
    """What the callbacks share: recalibrate a network in training at most once a step, and examine it at the end.

    Arguments:
        batches: how many batches of the training loader to use, each time from the start of an epoch.
        forward: as `recalibrate` takes it, for batches of an unusual kind.
        loss: as `doctor` takes it.
    """

    result: DoctorResult | None = None  # of the last examination

    def __init__(
        self,
        batches: int = 20,
        *,
        forward: Callable[[nn.Module, Any], object] | None = None,
        loss: Loss | None = None,
    ) -> None:
        if batches < 1:
            raise BatchNormError(f"batches must be 1 or more, the number to recalibrate on; got {batches}")
        self._batches, self._forward, self._loss = batches, forward, loss
        self._step: int | None = None

    def _begin(self, model: nn.Module) -> None:
        """Raise BatchNormError if the network has no BN layer: now, and not after an epoch."""
        self._step = None
        if not any(isinstance(layer, AnyBatchNorm) for layer in model.modules()):
            raise BatchNormError(f"{type(model).__name__} has no BatchNorm layer: leave this callback out")

    def _recalibrate(self, model: nn.Module, loader: Iterable[Any], step: int) -> None:
        """Replace the running statistics, in place, unless this step has done so or all of them are frozen."""
        layers = [
            layer for layer in model.modules() if isinstance(layer, AnyBatchNorm) and layer.running_mean is not None
        ]
        if step == self._step or all(statistics_frozen(layer) for layer in layers):
            return
        with training_batches(loader, self._batches) as batches:
            recalibrate(model, batches, forward=self._forward)
        self._step = step

    def _examine(self, model: nn.Module, loader: Iterable[Any]) -> None:
        """Keep what the doctor says about the network as `result`."""
        with training_batches(loader, self._batches) as batches:
            self.result = doctor(model, batches, loss=self._loss)


@contextmanager
def training_batches(loader: Iterable[Any], count: int) -> Iterator[Iterator[Any]]:
    """Give the first batches of a training loader. The training that uses it goes on as if nothing had happened.

    A loader of torch is read by a second one without workers, since `persistent_workers` allows one reader. So data
    sets draw their random numbers in this process. Those of Python, NumPy and torch, and of a generator that shuffles,
    are restored.
    """
    generator = getattr(getattr(loader, "sampler", None), "generator", None)
    state = None if generator is None else generator.get_state()
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (data sets use it)
    try:
        with torch.random.fork_rng(devices=[]):
            yield islice(_reader(loader), count)
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        if generator is not None:
            generator.set_state(state)


def _reader(loader: Iterable[Any]) -> Iterable[Any]:
    if not isinstance(loader, DataLoader):
        return loader
    if loader.batch_sampler is not None:
        return DataLoader(loader.dataset, batch_sampler=loader.batch_sampler, collate_fn=loader.collate_fn)
    return DataLoader(
        loader.dataset,
        loader.batch_size,
        collate_fn=loader.collate_fn,
        drop_last=loader.drop_last,
        sampler=loader.sampler,
    )
