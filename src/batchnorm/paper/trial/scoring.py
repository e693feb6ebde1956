"""Compute the loss of a batch, and the score on the held-out batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import BatchNormError, first_line
from ...graph.batches import described, device_of, run_batch
from ...torch_private import pytree
from .data import copied, examples

Function = Callable[[Any, Any], Any]  # of (output, target)


class Scoring(NamedTuple):
    """The loss to train with, the score to compare by, its name, and whether higher is better."""

    loss: Function
    score: Function
    name: str
    higher: bool

    def loss_of(self, model: nn.Module, batch: Any) -> Tensor:
        """Run the model on a batch and return its loss, a scalar.

        Raises:
            BatchNormError: the network or the loss does not run on the batch, or the loss is no scalar.
        """
        loss = _called("loss", self.loss, run_batch(model, batch), _target(model, batch))
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = f"a tensor {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise BatchNormError(f"the loss returns {got}; wanted a tensor of one value")
        return loss.reshape(())

    def mean_score(self, model: nn.Module, batches: Sequence[Any]) -> float:
        """Return the score over all examples of the batches. It is NaN if the network's output is not finite.

        Raises:
            BatchNormError: the network or the metric does not run on a batch, or the metric gives no number.
        """
        total = count = 0
        for batch in map(copied, batches):
            output = run_batch(model, batch)
            if not all(leaf.isfinite().all() for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)):
                return math.nan
            value = _called("metric", self.score, output, _target(model, batch))
            try:
                total += float(value) * examples(batch)
            except (TypeError, ValueError, RuntimeError) as error:
                raise BatchNormError(f"the metric returns {type(value).__name__}; wanted one number") from error
            count += examples(batch)
        return total / count


def make_scoring(loss: Function | None, metric: Function | None, batch: Any) -> Scoring:
    """Return what to train with and to compare by.

    | given | loss | score |
    |---|---|---|
    | nothing, targets are integers | cross-entropy | accuracy |
    | nothing, targets are floats | mean squared error | the loss, lower is better |
    | a loss | that loss | the loss, lower is better |
    | a metric | as above | the metric, higher is better |

    Raises:
        BatchNormError: the loss or the metric cannot be called, or there is none and the target is no tensor.
    """
    for name, function in (("loss", loss), ("metric", metric)):
        if function is not None and not callable(function):
            raise BatchNormError(f"{name} must be a function of (output, target); got {type(function).__name__}")
    if loss is None and not isinstance(batch[1], Tensor):
        raise BatchNormError(f"the targets are {type(batch[1]).__name__}; wanted tensors, or a loss that takes them")
    classes = loss is None and not batch[1].is_floating_point()
    loss = loss or (_cross_entropy if classes else _squared_error)
    if metric is not None:
        return Scoring(loss, metric, getattr(metric, "__name__", type(metric).__name__), True)
    return Scoring(loss, _accuracy, "accuracy", True) if classes else Scoring(loss, loss, "loss", False)


def _cross_entropy(output: Any, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target.long())


def _squared_error(output: Any, target: Tensor) -> Tensor:
    if output.shape != target.shape:
        raise BatchNormError("both must have one shape")  # torch would broadcast them
    return F.mse_loss(output, target)


def _accuracy(output: Tensor, target: Tensor) -> Tensor:
    return (output.argmax(1) == target).double().mean()


def _called(name: str, function: Function, output: Any, target: Any) -> Any:
    try:
        return function(output, target)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise BatchNormError(
            f"the {name} does not run on an output of {described(output)} and a target of {described(target)}: "
            f"{first_line(error).rstrip('.')}. Give a {name} of (output, target) that takes them."
        ) from error


def _target(model: nn.Module, batch: Any) -> Any:
    return pytree.tree_map_only(Tensor, lambda x: x.to(device_of(model)), batch[1])
