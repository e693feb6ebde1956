"""Save and load the state of one training."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...errors import BatchNormError, StorageError
from ...files import check_unpacked
from .atomic import sync_file, sync_folder, synced


@dataclass(frozen=True)
class Checkpoint:
    """The newest state of one training, and the state before it. Each file is complete at any moment.

    Arguments:
        path: The file of the newest state.
        records: Records that must be on the disk before a later state is, because resuming does not make them again.
    """

    path: Path
    records: Path | None = None

    @property
    def previous(self) -> Path:
        """Return the path of the state before the newest."""
        return self.path.with_suffix(".previous.pt")

    def save(self, state: dict[str, Any]) -> None:
        """Write `state` as the newest. A kill meanwhile leaves the state before it.

        Raises:
            StorageError: The disk is full or the folder read-only. The state before it is kept.
        """
        partial = self.path.with_suffix(".partial")
        try:
            with synced(partial) as file:
                torch.save(state, file)
            if self.records is not None and self.records.exists():
                sync_file(self.records)
            if self.path.exists():
                self.path.replace(self.previous)
            partial.replace(self.path)
            sync_folder(self.path.parent)
        except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError if a write fails
            raise StorageError(f"cannot write {self.path}: {error}. The state before it is kept.") from error

    def load(self) -> dict[str, Any] | None:
        """Return the newest undamaged state, or None if there is no file yet. Code in the file is never run.

        Raises:
            BatchNormError: Every file is damaged.
        """
        errors = []
        for path in (self.path, self.previous):
            if not path.exists():
                continue
            try:
                check_unpacked(path)
                state = torch.load(path, weights_only=True, map_location="cpu")
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
