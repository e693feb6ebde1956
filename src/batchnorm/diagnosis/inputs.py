"""Read batches: the example for tracing, the target for the loss, the numbers in an output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BatchNormError, first_line
from ..graph.batches import described, run_batch
from ..torch_private import pytree


def run(model: nn.Module, batch: Any) -> Any:
    """Run the model on a copy of a batch, since it may write into its input, and return the output.

    Raises:
        BatchNormError: as `run_batch`.
    """
    return run_batch(model, with_inputs(batch, pytree.tree_map_only(Tensor, torch.clone, inputs_of(batch))))


def inputs_of(batch: Any) -> Any:
    """Return the part of a batch that the network gets, as `run_batch` takes it."""
    return batch[0] if isinstance(batch, tuple | list) and batch else batch


def largest_input(batch: Any) -> Tensor | None:
    """Return the tensor with the most values that the network gets, or None without any."""
    tensors = [x for x in pytree.tree_leaves(inputs_of(batch)) if isinstance(x, Tensor)]
    return max(tensors, key=Tensor.numel, default=None)


def example_of(batch: Any) -> Any:
    """Return the input of a batch as `trace` takes it, cut to two examples if it is a tensor."""
    inputs = inputs_of(batch)
    if isinstance(inputs, Tensor):
        return inputs[:2]
    return dict(inputs) if isinstance(inputs, Mapping) else (list(inputs),)


def with_inputs(batch: Any, inputs: Any) -> Any:
    """Return the batch with other inputs."""
    return (inputs, *batch[1:]) if isinstance(batch, tuple | list) and batch else inputs


def target_of(batch: Any, output: Any) -> Any:
    """Return what the loss compares `output` with, on its device: the second part of a tuple, or else the batch."""
    target = batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else batch
    device = next((x.device for x in pytree.tree_leaves(output) if isinstance(x, Tensor)), None)
    return target if device is None else pytree.tree_map_only(Tensor, lambda x: x.to(device), target)


def loss_of(loss: Callable[[Any, Any], Any], batch: Any, output: Any) -> Tensor:
    """Return the loss of an output, a scalar.

    Raises:
        BatchNormError: the loss does not run on the output and the target, or gives no single number.
    """
    target = target_of(batch, output)
    try:
        return torch.as_tensor(loss(output, target)).reshape(())
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise BatchNormError(
            f"the loss does not run on an output of {described(output)} and a target of {described(target)}: "
            f"{first_line(error).rstrip('.')}. Give a function of (output, target) that returns one number."
        ) from error


def numbers_in(value: Any) -> list[Tensor]:
    """List the floating point tensors in an output."""
    return [x for x in pytree.tree_leaves(value) if isinstance(x, Tensor) and x.is_floating_point() and x.numel()]
