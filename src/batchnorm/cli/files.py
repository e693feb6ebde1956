"""Networks and weights by name: what the command loads, and what it writes."""

from __future__ import annotations

import importlib.util
import pickle
import sys
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BatchNormError, first_few, first_line

# Of the extra `files`, by ending.
_PACKAGES = {".onnx": ("onnx", "onnxscript"), ".safetensors": ("safetensors",)}


def make(target: str) -> Any:
    """Call the factory that `MODULE:FACTORY` names, such as torchvision.models:resnet18, without arguments.

    Modules in the working directory are found too.

    Raises:
        BatchNormError: another form, a module or factory that is not there, a factory that fails.
    """
    module, _, factory = target.partition(":")
    if not factory or not all(part.isidentifier() for part in module.split(".")) or module.endswith(".py"):
        raise BatchNormError(f"wanted MODULE:FACTORY, such as torchvision.models:resnet18; got {target!r}")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return attrgetter(factory)(importlib.import_module(module))()
    except Exception as error:
        advice = ""
        if isinstance(error, TypeError):
            advice = ". It is called without arguments; name a function that wants none"
        elif isinstance(error, ModuleNotFoundError):
            advice = ". Install that package, or start batchnorm in the folder where the module is"
        raise BatchNormError(f"cannot make {target}: {type(error).__name__}: {first_line(error)}{advice}") from error


def make_model(target: str, weights: Path | None) -> nn.Module:
    """The network of `make`, with the weights of a file if one is given, in eval mode.

    Raises:
        BatchNormError: as `make` and `load_weights`; the factory gives no network.
    """
    model = make(target)
    if not isinstance(model, nn.Module):
        raise BatchNormError(f"{target} gives a {type(model).__name__}; wanted a torch.nn.Module")
    if weights is not None:
        load_weights(model, weights)
    return model.eval()


def load_weights(model: nn.Module, file: Path) -> None:
    """Load a `state_dict` from a .safetensors file, or the tensors alone from one that `torch.save` wrote.

    Raises:
        BatchNormError: no such file, a file that would run code, no tensors by name, a key or shape that does not fit.
    """
    state = _read(file)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        found = (
            f"a dict with the keys {', '.join(map(str, list(state)[:5]))}" if isinstance(state, dict) else type(state)
        )
        raise BatchNormError(f"{file} holds {found}; wanted tensors by name. Write model.state_dict() into it.")
    own = model.state_dict()
    # Checkpoints older than torch 0.4.1 do not count batches, which nothing here depends on.
    faults = [f"has no {name!r}" for name in own if name not in state and not name.endswith("num_batches_tracked")]
    faults += [f"has {name!r}, which the network has not" for name in state if name not in own]
    faults += [
        f"has {name!r} of shape {tuple(state[name].shape)}, the network of {tuple(value.shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    if faults:
        found = first_few([f"it {fault}" for fault in faults])
        raise BatchNormError(f"{file} does not fit {type(model).__name__}: {found}{_advice(state, own)}")
    model.load_state_dict(state, strict=False)


def _advice(state: dict[str, Tensor], own: dict[str, Tensor]) -> str:
    """What to do where all names begin alike, as those of a wrapper do (DistributedDataParallel, torch.compile)."""
    prefix = f"{next(iter(state), '').partition('.')[0]}."
    if {name.removeprefix(prefix) for name in state if name.startswith(prefix)} != set(own):
        return ""
    return f". Its names begin with {prefix!r}: write the state_dict of the network inside"


def _read(file: Path) -> Any:
    if not file.is_file():
        raise BatchNormError(f"there is no file {file}")
    try:
        if file.suffix == ".safetensors":
            return _safetensors().load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise BatchNormError(
            f"{file} is refused: it is damaged or holds more than tensors, and loading that could run code. "
            "Where you trust its source, load it there and write model.state_dict() into a .safetensors file."
        ) from error
    except Exception as error:
        raise BatchNormError(
            f"{file} cannot be read: {type(error).__name__}: {first_line(error)}. Wanted model.state_dict(), in a "
            ".safetensors file or as torch.save writes it."
        ) from error


def check_out(file: Path, kinds: tuple[str, ...]) -> None:
    """Raise BatchNormError unless `file` is new, has one of these endings and a folder, and its format's packages are.

    What takes time comes after this.
    """
    if file.suffix not in kinds:
        what = "is a folder" if file.is_dir() else f"ends in {file.suffix!r}"
        raise BatchNormError(f"{file} {what}; wanted a new file that ends in {' or '.join(kinds)}")
    if not file.parent.is_dir():
        raise BatchNormError(f"there is no folder {file.parent}")
    if file.exists():
        raise BatchNormError(f"{file} is there already; give another name, or remove it")
    for package in _PACKAGES.get(file.suffix, ()):
        if importlib.util.find_spec(package) is None:
            raise BatchNormError(f"{file.suffix} files need {package}: pip install 'batchnorm[files]'")


def save_state(model: nn.Module, file: Path) -> None:
    """Write the `state_dict` as .safetensors."""
    state = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    _safetensors().save_file(state, file)


def save_network(model: nn.Module, example: Tensor, file: Path) -> None:
    """Write a network: .pt2 (`torch.export`) and .onnx for any batch size, .safetensors its tensors alone."""
    if file.suffix == ".safetensors":
        save_state(model, file)
        return
    # A batch of one would be taken for a constant.
    batch = (torch.cat([example, example]) if len(example) == 1 else example,)
    any_size = ({0: torch.export.Dim.DYNAMIC},)
    try:
        if file.suffix == ".pt2":
            torch.export.save(torch.export.export(model, batch, dynamic_shapes=any_size), file)
        else:
            options = {"dynamo": True, "dynamic_shapes": any_size, "external_data": False, "verbose": False}
            torch.onnx.export(model, batch, file, **options)
    except Exception as error:
        raise BatchNormError(f"{file} cannot be written: {type(error).__name__}: {first_line(error)}") from error


def _safetensors() -> Any:
    try:
        return importlib.import_module("safetensors.torch")
    except ModuleNotFoundError as error:
        raise BatchNormError("safetensors files need safetensors: pip install 'batchnorm[files]'") from error
