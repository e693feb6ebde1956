"""Append and read rows of records, in files of JSON lines."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

from ...atomic import write_atomically
from ...errors import BatchNormError, StorageError
from ...files import read_regular
from .validation import checked, shown

Row = dict[str, Any]  # the JSON values of one line
MOST_BYTES = 2**30  # of a file of records
_BLOCK = 4096


def append_row(path: Path, row: Row) -> None:
    """Append one line, in place of a last line that a kill cut short. If the disk fills up, remove what was written.

    Raises:
        StorageError: the disk is full or the folder read-only.
    """
    line = _line(row).encode()
    try:
        with path.open("a+b", buffering=0) as file:
            before = _end_of_lines(file)
            if before < file.seek(0, os.SEEK_END):
                file.truncate(before)
            try:
                if file.write(line) != len(line):
                    raise OSError("the disk is full")
            except OSError:
                with suppress(OSError):
                    file.truncate(before)
                raise
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error}") from error


def read_rows(path: Path, kind: type | None = None) -> list[Row]:
    """Return all rows, or none if there is no file. Ignore a last line that a kill cut short.

    Arguments:
        path: the file of JSON lines.
        kind: a dataclass that declares types and bounds of a row's fields. By default a row may have any fields.

    Raises:
        BatchNormError: another line is damaged or no row of this kind. The message names file, line and field.
            Or the file is no regular file, or has more than 1 GiB.
    """
    if not path.exists():
        return []
    lines = read_regular(path, MOST_BYTES).split(b"\n")[:-1]
    return [_read(line, f"{path}, line {number}", kind) for number, line in enumerate(lines, 1)]


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Replace the whole file atomically.

    Raises:
        StorageError: the disk is full or the folder read-only.
    """
    write_atomically(path, "".join(map(_line, rows)))


def _read(line: bytes, place: str, kind: type | None) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # bytes that are no JSON, or no UTF-8
        raise BatchNormError(f"{place} is damaged; remove that line: {error}") from error
    if kind is not None:
        checked(kind, row, place)
    elif not isinstance(row, dict):
        raise BatchNormError(f"{place} must be a JSON object; got {shown(row)}")
    return row


def _end_of_lines(file: FileIO) -> int:
    """Return where the last whole line ends."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - _BLOCK)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _line(row: Row) -> str:
    # JSON has no NaN or infinity: the loss of a diverged network becomes null.
    clean = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()
    }
    return json.dumps(clean, allow_nan=False) + "\n"
