"""A run folder on disk: settings, records, checkpoints. Nothing in it is ever overwritten by another run."""

from __future__ import annotations

import json
import math
import os
import platform
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ... import __version__
from ...errors import BatchNormError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

Row = dict[str, Any]


class Run:
    """One experiment's folder: `config.json`, `metrics.jsonl` (a row a measurement) and a checkpoint a training."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._append = threading.Lock()

    @classmethod
    def create(cls, folder: Path | None, experiment: str, config: dict[str, Any]) -> Run:
        """A new run in `folder`, or in the first free of runs/EXPERIMENT-1, -2, … if None.

        Raises:
            BatchNormError: `folder` exists and is not an empty folder, or cannot be made.
        """
        folder = new_folder(folder, experiment)
        write_atomically(folder / "config.json", _json({"experiment": experiment, **config, "made_with": versions()}))
        return cls(folder)

    @classmethod
    def open(cls, folder: Path) -> tuple[Run, str, dict[str, Any]]:
        """A run made before, the name of its experiment, and its settings.

        Raises:
            BatchNormError: `folder` is not a run.
        """
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            experiment = config.pop("experiment")
            config.pop("made_with")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BatchNormError(
                f"{folder} is not the folder of a run: {error!r}. Name one with a config.json."
            ) from error
        return cls(folder), experiment, config

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other processes from writing this run meanwhile (on POSIX; elsewhere nothing keeps them).

        Raises:
            BatchNormError: another process has claimed it.
        """
        if fcntl is None:
            yield
            return
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(folder)
            raise BatchNormError(f"{self.folder} is being written by another process; wait for it") from error
        try:
            yield
        finally:
            os.close(folder)

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    def append(self, row: Row) -> None:
        """Write one row of the records, whole, so that a kill loses at most the last one.

        Raises:
            BatchNormError: the disk is full or the folder read-only.
        """
        with self._append:
            append_row(self.metrics, row)

    def rows(self) -> list[Row]:
        """All rows of the records; a last line that a kill cut short is left out."""
        return read_rows(self.metrics)

    def replace_rows(self, rows: Iterable[Row]) -> None:
        """Write the records anew, all at once."""
        write_atomically(self.metrics, "".join(_line(row) for row in rows))

    def checkpoint(self, name: str) -> Checkpoint:
        """Where the training `name` of this run keeps its state."""
        return Checkpoint(self.folder / f"checkpoint-{name}.pt")


@dataclass(frozen=True)
class Checkpoint:
    """The newest state of one training, and the one before it, each in a file that is always whole."""

    path: Path

    @property
    def previous(self) -> Path:
        """Where the state before the newest is."""
        return self.path.with_suffix(".previous.pt")

    def save(self, state: dict[str, Any]) -> None:
        """Keep `state`; a kill meanwhile leaves the one before.

        Raises:
            BatchNormError: the disk is full or the folder read-only; the one before is still there.
        """
        partial = self.path.with_suffix(".partial")
        try:
            with partial.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())  # whole on the disk before it takes the name
            if self.path.exists():
                self.path.replace(self.previous)
            partial.replace(self.path)
        except (OSError, RuntimeError) as error:  # torch's writer raises the latter
            raise BatchNormError(f"cannot write {self.path}: {error}. The state before it is kept.") from error

    def load(self) -> dict[str, Any] | None:
        """The newest state that is whole, or None before the first. Never runs code from a file.

        Raises:
            BatchNormError: all files there are are damaged.
        """
        errors = []
        for path in (self.path, self.previous):
            if not path.exists():
                continue
            try:
                state = torch.load(path, weights_only=True, map_location="cpu")
            except Exception as error:  # torch names no type for a damaged file
                errors.append(f"{path} is damaged ({str(error).partition('.')[0]})")
            else:
                if errors:
                    warnings.warn(f"{errors[0]}. Going on from {path}, step {state['step']}.", stacklevel=2)
                return state
        if errors:
            raise BatchNormError(f"{'; '.join(errors)}: remove it to train from the start")
        return None


def append_row(path: Path, row: Row) -> None:
    """Append `row` to a file of JSON lines, or nothing of it if the disk fills meanwhile.

    Raises:
        BatchNormError: the disk is full or the folder read-only.
    """
    line = _line(row).encode()
    try:
        with path.open("ab", buffering=0) as file:
            before = file.tell()
            try:
                if file.write(line) != len(line):
                    raise OSError("the disk is full")
            except OSError:
                with suppress(OSError):
                    file.truncate(before)
                raise
    except OSError as error:
        raise BatchNormError(f"cannot write {path}: {error}") from error


def read_rows(path: Path) -> list[Row]:
    """The rows of a file of JSON lines, none if it does not exist; a last line that was cut short is left out.

    Raises:
        BatchNormError: another line is damaged.
    """
    if not path.exists():
        return []
    rows = []
    try:
        rows += map(json.loads, path.read_text(encoding="utf-8").split("\n")[:-1])
    except json.JSONDecodeError as error:
        raise BatchNormError(f"{path}, line {len(rows) + 1} is damaged; remove that line: {error}") from error
    return rows


def new_folder(folder: Path | None, experiment: str) -> Path:
    """Make `folder`, or the first free of runs/EXPERIMENT-1, -2, … if None.

    Raises:
        BatchNormError: `folder` exists and is not an empty folder, or cannot be made.
    """
    try:
        if folder is None:
            return _first_free(Path("runs"), experiment)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            runs = [*folder.glob("config.json"), *folder.glob("*/config.json")]
            resumes = f", or --resume {folder}" if runs else ""
            raise BatchNormError(f"{folder} exists, and nothing is overwritten. Name a new folder{resumes}")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BatchNormError(f"cannot make the run folder {folder or 'in runs'}: {error}") from error
    return folder


def versions() -> dict[str, Any]:
    """What a record needs to be judged later: software and hardware."""
    return {
        "batchnorm": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
    }


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write `content` so that a reader, or a kill, meets the old file or the new one, never half of either.

    Raises:
        BatchNormError: the disk is full or the folder read-only.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
    except OSError as error:
        raise BatchNormError(f"cannot write {path}: {error}") from error


def _first_free(parent: Path, experiment: str) -> Path:
    number = 1
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        folder = parent / f"{experiment}-{number}"
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder


def _line(row: Row) -> str:
    # JSON has no NaN or infinity; a diverged loss is null.
    clean = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()
    }
    return json.dumps(clean, allow_nan=False) + "\n"


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, default=str) + "\n"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].split(":", 1)[1].strip() if names else platform.processor() or platform.machine()
