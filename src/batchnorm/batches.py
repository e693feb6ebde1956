"""Running a network over batches of data, for the transforms that measure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from .errors import BatchNormError


def check_batches(batches: Iterable[Any]) -> None:
    """Raise BatchNormError if `batches` is a single batch, which is iterable too."""
    if isinstance(batches, Tensor | Mapping | str):
        raise BatchNormError(f"wanted an iterable of batches; got one {type(batches).__name__}. Give [batch].")


def run_batch(model: nn.Module, batch: Any) -> Any:
    """Run one batch, moved to the device of the model.

    Arguments:
        batch: a tensor, a dict of keyword arguments, or a tuple or list that starts with one of the two (a
            DataLoader gives (input, target)).

    Raises:
        BatchNormError: any other kind of batch.
    """
    device = device_of(model)
    inputs = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if isinstance(inputs, Tensor):
        return model(inputs.to(device))
    if isinstance(inputs, Mapping):
        return model(**{key: v.to(device) if isinstance(v, Tensor) else v for key, v in inputs.items()})
    raise BatchNormError(
        f"cannot tell the input of a batch of type {type(batch).__name__}; wanted a tensor, a dict of keyword "
        "arguments, or a tuple that starts with one of the two."
    )


def device_of(model: nn.Module) -> torch.device:
    """The device of the network's first tensor; the CPU if it has none."""
    return next(chain(model.parameters(), model.buffers()), torch.empty(0, device="cpu")).device


@contextmanager
def in_eval(model: nn.Module) -> Iterator[None]:
    """All modules in eval mode for a while.

    Modes are set one by one, since a layer may have a `train` of its own (a frozen one has).
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode
