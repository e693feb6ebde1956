"""`hold_statistics`: normalize by the batch without counting it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from .attached import layers_of, refuse_lazy


@contextmanager
def hold_statistics(model: nn.Module) -> Iterator[None]:
    """Within the block, BN layers in training mode normalize by the batch and do not count it.

    For forwards in training mode that are no training steps: the generator's pass through a discriminator, the second
    step of SAM, a consistency loss, a validation loss. Running statistics and `num_batches_tracked` stay as they are.
    Layers in eval mode normalize by their running statistics, as always. Works with torch's layers and subclasses. Copy
    the network before the block: a copy made within it stays held.

    Under `torch.utils.checkpoint` the layers of this package need no such block. They do not count a batch that a
    backward pass computes again.

    Arguments:
        model: any network. `track_running_stats` of its BN layers is False within the block.

    Raises:
        BatchNormError: there is no BN layer, or one is lazy and has no channels yet.

    Example:
        >>> import torch
        >>> import batchnorm as bn
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(1))
        >>> with bn.hold_statistics(model):
        ...     _ = model(torch.tensor([[1.0], [3.0]]))
        >>> model[0].num_batches_tracked
        tensor(0)
    """
    layers = layers_of(model, "hold")
    refuse_lazy(layers, "hold")
    tracking = [layer for layer in layers.values() if layer.track_running_stats]
    for layer in tracking:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in tracking:
            layer.track_running_stats = True
