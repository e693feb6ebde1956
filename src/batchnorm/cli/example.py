"""The example input of a network, made from its shape."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import BatchNormError
from ..graph.batches import does_not_run


@torch.no_grad()
def example_for(model: nn.Module, shape: str) -> Tensor:
    """Return seeded noise of a shape such as 1x3x224x224, after running the network on it once.

    Raises:
        BatchNormError: `shape` is written in another form, or the network does not run on it.
    """
    sizes = shape.split("x")
    if len(sizes) < 2 or not all(size.isdecimal() and int(size) for size in sizes):
        raise BatchNormError(f"--input wants a shape with its batch axis, such as 1x3x224x224; got {shape!r}")
    example = torch.randn([int(size) for size in sizes], generator=torch.Generator().manual_seed(0))
    try:
        model(example)
    except Exception as error:
        raise does_not_run(model, f"--input {shape}", error) from error
    return example
