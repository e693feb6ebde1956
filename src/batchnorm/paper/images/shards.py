"""WebDataset shards: tar files of labeled images, read through an index of their headers."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
from torch import Tensor

from ...errors import BatchNormError
from ..training.atomic import write_atomically
from .damage import DamagedImage
from .decode import EXTENSIONS, decode


class Stamp(NamedTuple):
    """Identify a version of a shard: its path, size in bytes, and time of the last change."""

    path: str
    size: str
    changed: str


class ShardIndex(NamedTuple):
    """The images of a shard: their keys, and rows of (offset, size in bytes, label)."""

    keys: np.ndarray
    places: np.ndarray


class ShardImages:
    """Images in WebDataset shards: KEY.jpg (or .jpeg, .png, …) is an image, and KEY.cls its label, a number.

    The tar headers are read once, at the start. Then every image is read from its place in its shard.

    Arguments:
        paths: the shards.
        index: a file that `save_index` wrote, if it exists. Only the headers of changed shards are read again.
        every_class: require an image of every label from 0 to the last.
    """

    channels = 3

    def __init__(self, paths: Sequence[Path], index: Path | None, every_class: bool) -> None:
        self._stamps = [_stamp(path) for path in paths]  # Before reading, so that a later change is noticed.
        known = _load_index(index) if index is not None else {}
        parts = [known.get(stamp) or read_headers(path) for path, stamp in zip(paths, self._stamps, strict=True)]
        self.shards = [len(part.keys) for part in parts]
        self._keys = np.concatenate([part.keys for part in parts])
        self._places = np.concatenate([part.places for part in parts])
        self._ends = np.cumsum(self.shards)
        labels = np.unique(self._places[:, 2])
        if every_class and len(labels) <= labels[-1]:
            empty = next(label for label, other in enumerate(labels) if label != other)
            raise BatchNormError(
                f"the shards have labels up to {labels[-1]} and no image of class {empty}; "
                "wanted labels from 0, each with images"
            )
        self.classes = numbered_classes(int(labels[-1]) + 1)

    def save_index(self, file: Path) -> None:
        """Write the index of the headers, for the next start."""
        content = io.BytesIO()
        np.savez(content, stamps=np.array(self._stamps), ends=self._ends, keys=self._keys, places=self._places)
        write_atomically(file, content.getvalue())

    def __len__(self) -> int:
        return len(self._places)

    def name(self, number: int) -> str:
        """Return the shard and the key of an image."""
        return f"{self._path(number)}, {os.fsdecode(self._keys[number])}"

    def label(self, number: int) -> int:
        """Return the label of an image."""
        return int(self._places[number, 2])

    def read(self, number: int) -> Tensor:
        """Return an image: (3, H, W), uint8."""
        offset, size, _ = self._places[number].tolist()
        try:
            with Path(self._path(number)).open("rb") as file:
                file.seek(offset)
                return decode(file.read(size))
        except (OSError, ValueError) as error:
            raise DamagedImage(self.name(number), str(error)) from error

    def _path(self, number: int) -> str:
        return self._stamps[int(np.searchsorted(self._ends, number, side="right"))].path


def numbered_classes(classes: int) -> tuple[str, ...]:
    """Return "0", "1", …: names for classes that have none."""
    return tuple(map(str, range(classes)))


def read_headers(path: Path) -> ShardIndex:
    """Index the images of a shard by its tar headers.

    Raises:
        BatchNormError: The shard is damaged, or has no images; an image has no label; a label is negative.
    """
    images, labels = {}, {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, slash, base = member.name.rpartition("/")
                stem, _, extension = base.partition(".")
                key = folder + slash + stem
                if f".{extension.lower()}" in EXTENSIONS:
                    images[key] = (member.offset_data, member.size)
                elif extension == "cls":
                    content = tar.extractfile(member)
                    labels[key] = int(content.read()) if content is not None else -1
            _check_end(path, tar.offset)
    except (tarfile.TarError, OSError, ValueError) as error:
        raise BatchNormError(f"the shard {path} is damaged: {error}. Copy or make it again.") from error
    _check_labels(path, images, labels)
    places = [(*place, labels[key]) for key, place in images.items()]
    return ShardIndex(np.array([os.fsencode(key) for key in images]), np.array(places, dtype=np.int64))


def _check_end(path: Path, end: int) -> None:
    """Check for the zeros that end a tar file. Tarfile accepts a file cut between members or within a header."""
    with path.open("rb") as file:
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("truncated: it lacks the zeros that end a tar file")


def _check_labels(path: Path, images: dict[str, tuple[int, int]], labels: dict[str, int]) -> None:
    if not images:
        raise BatchNormError(f"the shard {path} has no images; wanted KEY.jpg and KEY.cls in it")
    if missing := sorted(images.keys() - labels.keys()):
        raise BatchNormError(f"the shard {path} has no label {missing[0]}.cls for its image {missing[0]}")
    if min(labels.values()) < 0:
        raise BatchNormError(f"the shard {path} has a label below 0; wanted labels from 0")


def _stamp(path: Path) -> Stamp:
    try:
        status = path.stat()
    except OSError as error:
        raise BatchNormError(f"the shard {path} cannot be read: {error}") from error
    return Stamp(str(path.resolve()), str(status.st_size), str(status.st_mtime_ns))


def _load_index(file: Path) -> dict[Stamp, ShardIndex]:
    """Return the indexes that `save_index` wrote. Return none if the file is missing or damaged."""
    try:
        with file.open("rb") as content, np.load(content) as index:
            ends = index["ends"][:-1]
            parts = zip(np.split(index["keys"], ends), np.split(index["places"], ends), strict=True)
            stamps = [Stamp(*stamp) for stamp in index["stamps"].tolist()]
            return {stamp: ShardIndex(*part) for stamp, part in zip(stamps, parts, strict=True)}
    except (OSError, ValueError, KeyError, EOFError, TypeError, BadZipFile):
        return {}
