"""Networks and batches by name: MODULE:FACTORY."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from itertools import count
from operator import attrgetter, length_hint
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from ..errors import BatchNormError, did_you_mean
from ..graph.batches import check_batches
from .weights import load_weights


def make(target: str) -> Any:
    """Call the factory that `MODULE:FACTORY` names, such as torchvision.models:resnet18, without arguments.

    Modules in the working directory are found too.

    Raises:
        BatchNormError: `target` has another form, or its module or factory does not exist, is no function or fails.
    """
    module, _, factory = target.partition(":")
    if not factory or not all(part.isidentifier() for part in module.split(".")) or module.endswith(".py"):
        raise BatchNormError(f"wanted MODULE:FACTORY, such as torchvision.models:resnet18; got {target!r}")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    with _one_error(target):
        found = attrgetter(factory)(import_module(module))
    if isinstance(found, nn.Module) or not callable(found):
        kind = type(found).__name__
        raise BatchNormError(f"{target} is a {kind}; wanted a function without arguments that returns the {kind}")
    with _one_error(target):
        return found()


@contextmanager
def _one_error(target: str) -> Iterator[None]:
    """Turn any error into one that names the target."""
    try:
        yield
    except (Exception, SystemExit) as error:  # a script without `if __name__ == "__main__"` exits
        raise BatchNormError(f"cannot make {target}: {reason(error)}{_advice(error)}") from error


def make_model(target: str, weights: Path | None) -> nn.Module:
    """Return the network of `make_network` in eval mode."""
    return make_network(target, weights).eval()


def make_network(target: str, weights: Path | None) -> nn.Module:
    """Return the network that `target` makes, in the mode that it has, with the weights of a file if one is given.

    Raises:
        BatchNormError: as `make` and `load_weights`, or the factory returns no network.
    """
    model = make(target)
    if not isinstance(model, nn.Module):
        raise BatchNormError(f"{target} returns {type(model).__name__}; wanted a torch.nn.Module")
    if weights is not None:
        load_weights(model, weights)
    return model


def make_batches(target: str, most: int | None = None) -> Batches:
    """Return the batches that `target` makes, `most` of them at most.

    Raises:
        BatchNormError: as `make`, or the factory returns nothing to iterate over, or one batch, or `most` is below 1.
            Iterating raises it too, with the number of the batch, if the next one cannot be made.
    """
    if most is not None and most < 1:
        raise BatchNormError(f"--batches must be at least 1; got {most}")
    batches = make(target)
    if not isinstance(batches, Iterable):
        raise BatchNormError(f"{target} returns {type(batches).__name__}; wanted an iterable of batches")
    check_batches(batches)
    return Batches(batches, target, most)


class Batches:
    """The batches of a factory: the first `most`, or all of them. An error in the factory becomes one line."""

    def __init__(self, batches: Iterable[Any], target: str, most: int | None) -> None:
        self._batches, self._target, self._most = batches, target, most

    def __length_hint__(self) -> int:
        hint = length_hint(self._batches, 0)
        return hint if self._most is None else min(hint or self._most, self._most)

    def __iter__(self) -> Iterator[Any]:
        batches = None
        for number in count(1) if self._most is None else range(1, self._most + 1):
            try:
                batches = iter(self._batches) if batches is None else batches
                batch = next(batches)
            except StopIteration:
                return
            except Exception as error:
                message = f"batch {number} of {self._target} (the first is 1) cannot be made: {reason(error)}"
                raise BatchNormError(message) from error
            yield batch


def reason(error: BaseException) -> str:
    """Return the type and the first line of an error. A worker of a DataLoader sends its own trace in the message."""
    lines = str(error).strip().splitlines() or ["no message"]
    return lines[-1] if lines[0].startswith("Caught ") else f"{type(error).__name__}: {lines[0]}"


def _advice(error: BaseException) -> str:
    if isinstance(error, TypeError):
        return ". It is called without arguments; name a function that needs none"
    if isinstance(error, AttributeError) and isinstance(error.obj, ModuleType):
        return did_you_mean(str(error.name), dir(error.obj))
    if isinstance(error, ModuleNotFoundError):
        return ". Install that package, or start batchnorm in the folder of the module"
    return ""
