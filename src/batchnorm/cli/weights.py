"""Weights of a network, read from a file. No file runs code."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import BatchNormError, first_few, first_line
from ..files import check_unpacked
from .extras import check_installed


def load_weights(model: nn.Module, file: Path) -> None:
    """Load a `state_dict` into the network, in place, from a .safetensors file or one that `torch.save` wrote.

    Raises:
        BatchNormError: the file is no regular file, is damaged, would run code or holds no tensors by name. Or a key,
            a shape or a kind of tensor does not fit.
    """
    state = _read(file)
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        found = (
            f"a dict with the keys {', '.join(map(str, list(state)[:5]))}" if isinstance(state, dict) else type(state)
        )
        raise BatchNormError(f"{file} holds {found}; wanted tensors by name. Write model.state_dict() into it.")
    own = model.state_dict()
    faults = _faults(state, own)
    if faults:
        found = first_few([f"it {fault}" for fault in faults])
        raise BatchNormError(f"{file} does not fit {type(model).__name__}: {found}{_advice(state, own)}")
    try:
        model.load_state_dict(state, strict=False)
    except Exception as error:  # a network may load in its own way
        found = " ".join(str(error).split())
        raise BatchNormError(f"{file} does not fit {type(model).__name__}: {type(error).__name__}: {found}") from error


def _faults(state: dict[str, Tensor], own: dict[str, Tensor]) -> list[str]:
    """Return what is missing, unknown, or of another kind or shape in `state`."""
    # Checkpoints older than torch 0.4.1 lack num_batches_tracked. Nothing here depends on it.
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    return [
        *(f"has no {name!r}" for name in missing),
        *(f"has {name!r}, which the network has not" for name in state if name not in own),
        *(f"has {name!r} as a {kind} tensor; wanted a dense one" for name in state if (kind := _kind(state[name]))),
        *(
            f"has {name!r} of shape {tuple(state[name].shape)}, the network of {tuple(value.shape)}"
            for name, value in own.items()
            if name in state and not is_lazy(value) and not _kind(state[name]) and state[name].shape != value.shape
        ),
    ]


def _kind(value: Tensor) -> str:
    """Name the kind of a tensor that cannot be copied into a dense one. Return "" for a dense one."""
    kinds = {
        "nested": value.is_nested,
        "sparse": value.layout != torch.strided,
        "quantized": value.is_quantized,
        "meta": value.is_meta,
        "complex": value.is_complex(),
    }
    return next((kind for kind, is_kind in kinds.items() if is_kind), "")


def _advice(state: dict[str, Tensor], own: dict[str, Tensor]) -> str:
    """Return advice if only a common prefix differs, as from DistributedDataParallel or torch.compile."""
    prefix = f"{next(iter(state), '').partition('.')[0]}."
    if {name.removeprefix(prefix) for name in state if name.startswith(prefix)} != set(own):
        return ""
    return f". Its names begin with {prefix!r}: write the state_dict of the network inside"


def _read(file: Path) -> Any:
    if file.suffix in (".onnx", ".pt2"):
        raise BatchNormError(
            f"{file} ends in {file.suffix}, as whole networks do; wanted the tensors alone, model.state_dict(), in a "
            ".safetensors file or as torch.save writes it"
        )
    check_unpacked(file)
    if file.suffix == ".safetensors":
        check_installed("safetensors", ".safetensors files")
    try:
        return _load(file)
    except pickle.UnpicklingError as error:
        raise BatchNormError(
            f"{file} is refused: it is damaged or holds more than tensors, and loading that could run code. "
            "If you trust its source, load it there and write model.state_dict() into a .safetensors file."
        ) from error
    except Exception as error:
        raise BatchNormError(
            f"{file} cannot be read: {type(error).__name__}: {first_line(error)}. Wanted model.state_dict(), in a "
            ".safetensors file or as torch.save writes it."
        ) from error


def _load(file: Path) -> Any:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file  # of the extra `files`

        return load_file(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about sparse and quantized tensors, which are refused
        return torch.load(file, map_location="cpu", weights_only=True)
