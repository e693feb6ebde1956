"""Run a network over batches of data, for the transforms that measure."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BatchNormError, first_line
from ..torch_private import pytree


def check_module(model: object) -> None:
    """Raise BatchNormError if `model` is no network. The message says what came and what to give."""
    if isinstance(model, nn.Module):
        return
    got, advice = type(model).__name__, "Give the network itself"
    if isinstance(model, type):
        got, advice = f"the class {model.__name__}", f"Make a network of it first, {model.__name__}(...)"
    elif isinstance(model, Mapping):
        advice = "Load the tensors into a network, model.load_state_dict(...), and give that"
    raise BatchNormError(f"wanted a network, a torch.nn.Module; got {got}. {advice}")


def check_batches(batches: Iterable[Any]) -> None:
    """Raise BatchNormError if `batches` is a single batch. A tensor or dict is iterable too, but not by batches."""
    if isinstance(batches, Tensor | Mapping | str) or not isinstance(batches, Iterable):
        raise BatchNormError(f"wanted an iterable of batches; got one {type(batches).__name__}. Give [batch].")


def run_batch(model: nn.Module, batch: Any) -> Any:
    """Run the model on one batch, which moves to the device of the model. Return the output.

    Arguments:
        model: the network.
        batch: a tensor, a dict of keyword arguments, or a tuple or list that starts with one of the two. A
            DataLoader gives such tuples, (input, target). It may also start with a list of tensors, which the network
            gets as one argument, as torchvision's detection networks take it: ([image, image], targets).

    Raises:
        BatchNormError: the batch is of another kind, or the network does not run on it.
    """
    inputs = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not isinstance(inputs, Tensor | Mapping) and not _is_list_of_tensors(inputs):
        raise BatchNormError(
            f"cannot tell the input of a batch of type {type(batch).__name__}; wanted a tensor, a dict of keyword "
            "arguments, or a tuple that starts with one of the two or with a list of tensors. recalibrate takes any "
            "other batch with forward=."
        )
    device = device_of(model)
    inputs = dict(inputs) if isinstance(inputs, Mapping) else inputs
    inputs = pytree.tree_map_only(Tensor, lambda x: x.to(device), inputs)
    try:
        return model(**inputs) if isinstance(inputs, dict) else model(inputs)
    except torch.OutOfMemoryError:
        raise  # the batch fits the network, but not the device
    except Exception as error:
        names = [] if isinstance(inputs, dict) else needed_arguments(model)
        several = f" Its forward needs {', '.join(names)}: give batches as dicts of these names." if names[1:] else ""
        raise does_not_run(model, f"a batch of {described(inputs)}", error, list_advice(batch) + several) from error


def _is_list_of_tensors(value: Any) -> bool:
    return isinstance(value, tuple | list) and bool(value) and all(isinstance(each, Tensor) for each in value)


def needed_arguments(model: nn.Module) -> list[str]:
    """List the arguments of the network's forward that have no default. `*args` and `**kwargs` are none."""
    parameters = inspect.signature(model.forward).parameters.values()
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [each.name for each in parameters if each.default is each.empty and each.kind not in several]


def list_advice(values: Any) -> str:
    """Return how to give a list of tensors as one argument, or "" if `values` are no list of alike tensors."""
    alike = _is_list_of_tensors(values) and len(values) > 1 and len({each.dim() for each in values}) == 1
    return " A network that takes a list of tensors takes it as ([a, b],)." if alike else ""


def does_not_run(model: nn.Module, what: str, error: Exception, advice: str = "") -> BatchNormError:
    """Return the error to raise if `model` does not run on `what`. It says what torch says, and what to do."""
    return BatchNormError(
        f"{type(model).__name__} does not run on {what}: {first_line(error).rstrip('.')}. "
        f"Give a shape, type and device that it takes; many networks need a minimum height and width.{advice}"
    )


def described(inputs: Any) -> str:
    """List the tensors in `inputs`, each with its shape, type and device."""
    tensors = [x for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor)]
    return " and ".join(f"{tuple(x.shape)} {x.dtype} on {x.device}" for x in tensors) or "no tensor"


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the network's first tensor, or the CPU if it has none."""
    return next(chain(model.parameters(), model.buffers()), torch.empty(0, device="cpu")).device


@contextmanager
def in_eval(model: nn.Module) -> Iterator[None]:
    """Put all modules into eval mode, and restore every mode at the end.

    Each mode is set by itself: a layer may have a `train` method of its own, as a frozen layer does.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode
