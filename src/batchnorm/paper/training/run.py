"""Create, open and write the folder of a run."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...atomic import make_folder, sync_folder, write_atomically
from ...errors import BatchNormError, StorageError
from ...files import read_regular
from .checkpoint import Checkpoint, Header
from .rows import Row, append_row, read_rows, write_rows
from .versions import versions

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


MOST_CONFIG_BYTES = 2**20
UNFINISHED = "config.json.partial"  # all that a run leaves that was killed while it was created


class Run:
    """The folder of one experiment: its settings, its records and a checkpoint for each training.

    The settings are in `config.json`, the records in `metrics.jsonl`, a row for each measurement. No run overwrites
    another.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._append = threading.Lock()

    @classmethod
    def create(
        cls,
        folder: Path | None,
        experiment: str,
        config: dict[str, Any],
        digest: str | None = None,
        device: str = "cpu",
    ) -> Run:
        """Create a run in `folder`. If that is None, take the first free of runs/EXPERIMENT-1, -2, ….

        Arguments:
            folder: a new or empty folder.
            experiment: the name of the experiment.
            config: the settings, as JSON values.
            digest: the digest of the settings that decide the numbers. It shows a later edit.
            device: "cpu" or "cuda", where the run begins. A later process may continue it elsewhere.

        Raises:
            BatchNormError: `folder` exists and is not an empty folder.
            StorageError: it cannot be created or written.
        """
        folder = new_folder(folder, experiment)
        kept = {} if digest is None else {"digest": digest}
        saved = {"experiment": experiment, **config, **kept, "made_with": versions(device)}
        write_atomically(folder / "config.json", json.dumps(saved, indent=2, default=str) + "\n")
        return cls(folder)

    @classmethod
    def open(cls, folder: Path) -> tuple[Run, str, dict[str, Any]]:
        """Return an existing run, the name of its experiment, and its settings. `saved_settings` checks them.

        Raises:
            BatchNormError: `folder` is not the folder of a run.
        """
        check_folder(folder)
        try:
            config = json.loads(read_regular(folder / "config.json", MOST_CONFIG_BYTES))
            experiment = config.pop("experiment")
            config.pop("made_with")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            why = error if isinstance(error, BatchNormError) else repr(error)
            raise BatchNormError(f"{folder} is not the folder of a run: {why}. Name one with a config.json.") from error
        return cls(folder), experiment, config

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Lock the run against other processes that would write it. Only POSIX systems have this lock.

        Raises:
            BatchNormError: another process holds the lock.
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
    def config(self) -> Path:
        """Return the path of the settings."""
        return self.folder / "config.json"

    @property
    def metrics(self) -> Path:
        """Return the path of the records."""
        return self.folder / "metrics.jsonl"

    def append(self, row: Row) -> None:
        """Append one row to the records, from any thread. A kill loses at most this row.

        Raises:
            StorageError: the disk is full or the folder read-only.
        """
        with self._append:
            append_row(self.metrics, row)

    def rows(self, kind: type | None = None) -> list[Row]:
        """Return all rows of the records, without a last line that a kill cut short.

        Arguments:
            kind: a dataclass that declares types and bounds of a row's fields.

        Raises:
            BatchNormError: another line is damaged or no row of this kind.
        """
        return read_rows(self.metrics, kind)

    def replace_rows(self, rows: Iterable[Row]) -> None:
        """Replace all records atomically.

        Raises:
            StorageError: the disk is full or the folder read-only.
        """
        write_rows(self.metrics, rows)

    def checkpoint(self, name: str, digest: str | None = None, header: type = Header) -> Checkpoint:
        """Return the checkpoint of the training `name`, as `Checkpoint` describes it."""
        return Checkpoint(self.folder / f"checkpoint-{name}.pt", digest, header, self.metrics)


def check_folder(folder: Path) -> None:
    """Raise BatchNormError unless `folder` is a folder."""
    if not folder.is_dir():
        fault = "is no folder" if folder.exists() else "does not exist"
        raise BatchNormError(f"{folder} {fault}; wanted the folder of a run, which has a config.json")


def new_folder(folder: Path | None, experiment: str) -> Path:
    """Create `folder`. If it is None, create the first free of runs/EXPERIMENT-1, -2, ….

    Raises:
        BatchNormError: `folder` exists and is not an empty folder.
        StorageError: it cannot be created.
    """
    try:
        if folder is None:
            return _first_free(Path("runs"), experiment)
        if folder.exists() and (not folder.is_dir() or any(path.name != UNFINISHED for path in folder.iterdir())):
            runs = [*folder.glob("config.json"), *folder.glob("*/config.json")]
            resumes = f", or --resume {folder}" if runs else ""
            raise BatchNormError(f"{folder} exists, and nothing is overwritten. Name a new folder{resumes}")
        make_folder(folder)
    except OSError as error:
        raise StorageError(f"cannot create the run folder {folder or 'in runs'}: {error}") from error
    return folder


def _first_free(parent: Path, experiment: str) -> Path:
    number = 1
    make_folder(parent)
    while True:
        folder = parent / f"{experiment}-{number}"
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            sync_folder(parent)
            return folder
