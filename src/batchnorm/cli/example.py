"""The example input of a network, made from its shape."""

from __future__ import annotations

import re
from math import prod

import torch
from torch import Tensor, nn

from ..errors import BatchNormError
from ..graph.batches import does_not_run, needed_arguments

MOST_VALUES = 2**31  # 8 GiB of float32


@torch.no_grad()
def example_for(model: nn.Module, shape: str) -> Tensor:
    """Return seeded noise of a shape such as 1x3x224x224, after running the network on it once.

    Raises:
        BatchNormError: `shape` is written in another form or too large, or the network does not run on it.
    """
    if not re.fullmatch(r"0*[1-9][0-9]*(x0*[1-9][0-9]*)+", shape):
        raise BatchNormError(f"--input wants a shape with its batch axis, such as 1x3x224x224; got {shape[:60]!r}")
    # A size of 20 digits is too large as it is, and Python refuses one of 5,000.
    sizes = [int(size[:20]) for size in shape.split("x")]
    if prod(sizes) > MOST_VALUES:
        raise BatchNormError(f"--input must have at most {MOST_VALUES:,} values; got {shape[:60]!r}")
    example = torch.randn(sizes, generator=torch.Generator().manual_seed(0))
    try:
        model(example)
    except Exception as error:
        names = needed_arguments(model)
        several = f" Its forward needs {', '.join(names)}, and --input makes one tensor: call batchnorm from Python."
        raise does_not_run(model, f"--input {shape}", error, several if names[1:] else "") from error
    return example
