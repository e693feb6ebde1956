"""Save and load the state of one training."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...atomic import sync_file, sync_folder, synced
from ...errors import BatchNormError, StorageError
from ...files import check_unpacked
from .bounds import Step
from .validation import checked, shown


@dataclass(frozen=True)
class Header:
    """What every checkpoint has beside its tensors. The checkpoints of version 0.1.0 have no digest."""

    step: Step
    diverged: bool = False
    digest: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """The newest state of one training, and the state before it. Each file is complete at any moment.

    Arguments:
        path: the file of the newest state.
        digest: the digest of the settings, which is saved too. A state with another digest is not loaded.
        header: the types and bounds of what a state has beside its tensors.
        records: records that must be on the disk before a later state is, because resuming does not make them again.
    """

    path: Path
    digest: str | None = None
    header: type = Header
    records: Path | None = None

    @property
    def previous(self) -> Path:
        """Return the path of the state before the newest."""
        return self.path.with_suffix(".previous.pt")

    @property
    def partial(self) -> Path:
        """Return the path of a state that is being written, or whose writer was killed."""
        return self.path.with_suffix(".partial")

    def save(self, state: dict[str, Any]) -> None:
        """Write `state` as the newest. A kill meanwhile leaves the state before it.

        Raises:
            StorageError: the disk is full or the folder read-only. The state before it is kept.
        """
        try:
            with synced(self.partial) as file:
                torch.save(state if self.digest is None else {**state, "digest": self.digest}, file)
            if self.records is not None and self.records.exists():
                sync_file(self.records)
            if self.path.exists():
                self.path.replace(self.previous)
            self.partial.replace(self.path)
            sync_folder(self.path.parent)
        except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError if a write fails
            raise StorageError(f"cannot write {self.path}: {error}. The state before it is kept.") from error

    def remove(self) -> None:
        """Remove all states, if they exist: those of a training that has ended.

        Raises:
            StorageError: the folder is read-only.
        """
        try:
            for path in (self.path, self.previous, self.partial):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"cannot remove {self.path}: {error}") from error

    def load(self) -> dict[str, Any] | None:
        """Return the newest undamaged state, or None if there is no file yet. Code in the file is never run.

        Raises:
            BatchNormError: every file is damaged, lacks a field of the header, or is of other settings.
        """
        errors = []
        for path in (self.path, self.previous):
            if not path.exists():
                continue
            try:
                check_unpacked(path)
                state = torch.load(path, weights_only=True, map_location="cpu")
                self._check(state, path)
            except BatchNormError as error:
                errors.append(str(error))
            except Exception as error:  # torch documents no type for a damaged file
                errors.append(f"{path} is damaged ({str(error).partition('.')[0]})")
            else:
                if errors:
                    warnings.warn(f"{errors[0]}. Going on from {path}, step {state['step']}.", stacklevel=2)
                return state
        if errors:
            raise BatchNormError(f"{'; '.join(errors)}: remove it to train from the start")
        return None

    def _check(self, state: object, path: Path) -> None:
        if not isinstance(state, dict):
            raise BatchNormError(f"{path} must hold a dict; got {shown(state)}")
        names = [field.name for field in fields(self.header) if field.name in state]
        checked(self.header, {name: state[name] for name in names}, str(path))
        found = state.get("digest")
        if self.digest is not None and found is not None and found != self.digest:
            raise BatchNormError(f"{path} was written with other settings than config.json has")


def load_tensors(model: nn.Module, saved: object) -> None:
    """Load the tensors of a `state_dict` into `model`.

    Raises:
        BatchNormError: a tensor is missing or unknown, or has another shape or dtype than the network's.
    """
    own = model.state_dict()
    if not isinstance(saved, Mapping):
        raise BatchNormError(f"model must be a dict of tensors; got {shown(saved)}")
    for name in (*own, *saved):
        if name not in saved or name not in own:
            raise BatchNormError(f"model {'lacks' if name in own else 'has'} {name!r}, unlike the network")
        ours, theirs = _described(own[name]), _described(saved[name])
        if ours != theirs:
            raise BatchNormError(f"model's {name!r} must be {ours}, as in the network; got {theirs}")
    model.load_state_dict(saved)


def _described(value: object) -> str:
    if not isinstance(value, Tensor):
        return shown(value)
    layout = "" if value.layout == torch.strided else f" {value.layout}"
    return f"a tensor {tuple(value.shape)} of {value.dtype}{layout}"
