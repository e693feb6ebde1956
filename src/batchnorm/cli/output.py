"""Results in files: checked before the work starts, written after it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

import torch
import torch.onnx
from torch import Tensor, nn

from ..errors import BatchNormError, StorageError, first_line
from ..escape import printable
from .extras import check_installed

PACKAGES = {".onnx": ("onnx", "onnxscript"), ".safetensors": ("safetensors",)}


def check_out(file: Path | None, endings: Collection[str]) -> None:
    """Check that `file` can be written: a new file with one of these endings. None is no file, and passes.

    The file is created and removed again, since only that shows what a file system allows.

    Raises:
        BatchNormError: another ending, a missing folder, a file that exists, or a format whose packages are missing.
        StorageError: the system does not let the file be written there.
    """
    if file is None:
        return
    try:
        _check_new(file, endings)
        file.open("xb").close()
        file.unlink()
    except FileExistsError as error:  # also a link to nowhere
        raise BatchNormError(f"{file} exists already; give another name, or remove it") from error
    except OSError as error:
        raise StorageError(f"{file} cannot be written: {error.strerror or error}") from error
    for package in PACKAGES.get(file.suffix, ()):
        check_installed(package, f"{file.suffix} files")


def _check_new(file: Path, endings: Collection[str]) -> None:
    if file.suffix not in endings:
        what = "is a folder" if file.is_dir() else f"ends in {file.suffix!r}"
        raise BatchNormError(f"{file} {what}; wanted a new file that ends in {' or '.join(endings)}")
    if not file.parent.is_dir():
        raise BatchNormError(f"there is no folder {file.parent}")
    if file.exists():
        raise BatchNormError(f"{file} exists already; give another name, or remove it")


def write(file: Path | None, save: Callable[[Path], None]) -> None:
    """Call `save` with the file, if there is one, and print its size.

    Raises:
        BatchNormError: `save` raised it.
        StorageError: the disk is full, or the folder cannot be written to. The part that was written is removed.
    """
    if file is None:
        return
    try:
        save(file)
        size = file.stat().st_size
    except BatchNormError:
        raise
    except Exception as error:  # neither torch nor safetensors raises OSError
        with suppress(OSError):
            file.unlink()
        raise StorageError(f"{file} cannot be written: {type(error).__name__}: {first_line(error)}") from error
    print(f"wrote {printable(file)}, {size / 1e6:.1f} MB")


def save_state(model: nn.Module, file: Path) -> None:
    """Write the `state_dict` as .safetensors."""
    from safetensors.torch import save_file  # of the extra `files`

    state = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    save_file(state, file)


def save_network(model: nn.Module, example: Tensor, file: Path) -> None:
    """Write a network: .pt2 or .onnx for any batch size, or .safetensors for its tensors alone.

    Raises:
        BatchNormError: torch cannot export the network.
    """
    if file.suffix == ".safetensors":
        save_state(model, file)
        return
    program = _exported(model, example, file.suffix)
    if isinstance(program, torch.export.ExportedProgram):
        torch.export.save(program, file)
    else:
        program.save(file, external_data=False)


def _exported(model: nn.Module, example: Tensor, ending: str) -> torch.export.ExportedProgram | torch.onnx.ONNXProgram:
    """Return the network for any batch size, as a program of torch.export or of ONNX."""
    # torch.export would take a batch of one for a constant.
    batch = (torch.cat([example, example]) if len(example) == 1 else example,)
    any_size = ({0: torch.export.Dim.DYNAMIC},)
    try:
        if ending == ".pt2":
            return torch.export.export(model, batch, dynamic_shapes=any_size)
        program = torch.onnx.export(model, batch, dynamo=True, dynamic_shapes=any_size, verbose=False)
    except Exception as error:
        raise BatchNormError(
            f"torch cannot export {type(model).__name__} as {ending}: {type(error).__name__}: {first_line(error)}"
        ) from error
    assert program is not None  # with dynamo=True
    return program
