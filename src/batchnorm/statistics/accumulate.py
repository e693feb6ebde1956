"""`accumulate`: several micro-batches move the running statistics once, as one batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce

import torch
from torch import nn

from ..kernels import batches
from ..kernels.bindings import Running
from ..layers import FusedBatchNorm
from ..moments import Moments
from ..torch_private import AnyBatchNorm
from .attached import layers_of, replaced, special_of


@contextmanager
def accumulate(model: nn.Module) -> Iterator[None]:
    """Around the micro-batches of one optimizer step, count them as one batch.

    Each micro-batch is normalized by its own statistics, as without the block. At the end of the block the running
    statistics move once, by the moments of all micro-batches together (Chan's formula). `num_batches_tracked` grows by
    1. Without the block they move once a micro-batch, with the noise of a micro-batch (pytorch issue 46516).

    A block within another one is a part of it: the statistics move at the end of the outer one.

    A micro-batch whose statistics are not finite is left out, of which our layers warn once. If the block raises, the
    running statistics and the counts are as before it. Works with torch's layers and subclasses.

    Arguments:
        model: any network with BN layers.

    Raises:
        BatchNormError: there is no BN layer.

    Example:
        >>> import torch
        >>> import batchnorm as bn
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(1, momentum=1.0))
        >>> with bn.accumulate(model):
        ...     for micro_batch in torch.tensor([[[0.0], [2.0]], [[10.0], [12.0]]]):
        ...         _ = model(micro_batch)
        >>> model[0].running_mean, model[0].num_batches_tracked
        (tensor([6.]), tensor(1))
    """
    layers = {name: layer for name, layer in layers_of(model, "accumulate").items() if layer.running_mean is not None}
    collected: dict[str, list[Moments]] = {name: [] for name in layers}
    outer = {name: special_of(layer).collected for name, layer in layers.items()}
    with replaced(layers, "collected", collected):
        yield
    for name, layer in layers.items():
        around = outer[name]
        if around is None:
            _move(layer, collected[name])
        else:
            around.extend(collected[name])


@torch.no_grad()
def _move(layer: AnyBatchNorm, collected: list[Moments]) -> None:
    finite = [moments for moments in collected if bool(moments.m2.isfinite().all())]
    if len(finite) < len(collected) and isinstance(layer, FusedBatchNorm):
        layer.warn_left_out()
    mean, var, count = layer.running_mean, layer.running_var, layer.num_batches_tracked
    if not finite or mean is None or var is None:
        return
    momentum = layer.momentum
    if momentum is None:  # the cumulative average
        momentum = 0.0 if count is None else 1.0 / (int(count) + 1)
    batches.move(Running(mean, var, momentum, count), reduce(Moments.merge, finite))
