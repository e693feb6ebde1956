"""Networks and batches by name: MODULE:FACTORY."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import BatchNormError, first_line
from .weights import load_weights


def make(target: str) -> Any:
    """Call the factory that `MODULE:FACTORY` names, such as torchvision.models:resnet18, without arguments.

    Modules in the working directory are found too.

    Raises:
        BatchNormError: `target` has another form, the module or factory does not exist, or the factory fails.
    """
    module, _, factory = target.partition(":")
    if not factory or not all(part.isidentifier() for part in module.split(".")) or module.endswith(".py"):
        raise BatchNormError(f"wanted MODULE:FACTORY, such as torchvision.models:resnet18; got {target!r}")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return attrgetter(factory)(import_module(module))()
    except Exception as error:
        message = f"cannot make {target}: {type(error).__name__}: {first_line(error)}{_advice(error)}"
        raise BatchNormError(message) from error


def make_model(target: str, weights: Path | None) -> nn.Module:
    """Return the network that `target` makes, in eval mode, with the weights of a file if one is given.

    Raises:
        BatchNormError: as `make` and `load_weights`, or the factory returns no network.
    """
    model = make(target)
    if not isinstance(model, nn.Module):
        raise BatchNormError(f"{target} returns {type(model).__name__}; wanted a torch.nn.Module")
    if weights is not None:
        load_weights(model, weights)
    return model.eval()


def make_batches(target: str) -> Iterable[Any]:
    """Return the batches that `target` makes.

    Raises:
        BatchNormError: as `make`, or the factory returns nothing to iterate over.
    """
    batches = make(target)
    if not isinstance(batches, Iterable):
        raise BatchNormError(f"{target} returns {type(batches).__name__}; wanted an iterable of batches")
    return batches


def _advice(error: Exception) -> str:
    if isinstance(error, TypeError):
        return ". It is called without arguments; name a function that needs none"
    if isinstance(error, ModuleNotFoundError):
        return ". Install that package, or start batchnorm in the folder of the module"
    return ""
