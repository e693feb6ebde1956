"""WebDataset shards: tar files of labelled images, each read from its place; the places are read once and kept."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from torch import Tensor

from ...errors import BatchNormError
from ..training.run import write_atomically
from .decode import EXTENSIONS, DamagedImage, decode

Stamp = tuple[str, str, str]  # of a shard: path, bytes, time of its last change
Index = tuple[np.ndarray, np.ndarray]  # of a shard: the keys of its images; offset, bytes and label of each


class ShardImages:
    """WebDataset shards: tar files in which KEY.cls holds the label, a number, of KEY.jpg (or .jpeg, .png, …).

    The tar headers are read once, at the start. From then on any image is read from its place in its shard.

    Arguments:
        index: what `save_index` wrote, if it is there; then only the headers of shards that have changed are read.
        every_class: every label from 0 to the last must have an image.
    """

    channels = 3

    def __init__(self, paths: Sequence[Path], index: Path | None, every_class: bool) -> None:
        self._stamps = [_stamp(path) for path in paths]  # before it is read: a later change will show
        known = _read_index(index) if index is not None else {}
        parts = [known.get(stamp) or _index_shard(path) for path, stamp in zip(paths, self._stamps, strict=True)]
        self.shards = [len(keys) for keys, _ in parts]
        self._keys = np.concatenate([keys for keys, _ in parts])
        self._places = np.concatenate([places for _, places in parts])
        self._ends = np.cumsum(self.shards)
        found = np.unique(self._places[:, 2])
        if every_class and len(found) <= found[-1]:
            empty = next(label for label, other in enumerate(found) if label != other)
            raise BatchNormError(
                f"the shards have labels up to {found[-1]} and no image of class {empty}; "
                "wanted labels from 0, each with images"
            )
        self.classes = numbered(int(found[-1]) + 1)

    def save_index(self, file: Path) -> None:
        """Write what the headers said, for the next start.

        Raises:
            BatchNormError: the disk is full or the folder read-only.
        """
        content = io.BytesIO()
        np.savez(content, stamps=np.array(self._stamps), ends=self._ends, keys=self._keys, places=self._places)
        write_atomically(file, content.getvalue())

    def __len__(self) -> int:
        return len(self._places)

    def name(self, number: int) -> str:
        return f"{self._path(number)}, {os.fsdecode(self._keys[number])}"

    def label(self, number: int) -> int:
        return int(self._places[number, 2])

    def read(self, number: int) -> Tensor:
        offset, size, _ = self._places[number].tolist()
        try:
            with Path(self._path(number)).open("rb") as file:
                file.seek(offset)
                return decode(file.read(size))
        except (OSError, ValueError) as error:
            raise DamagedImage(self.name(number), str(error)) from error

    def _path(self, number: int) -> str:
        return self._stamps[int(np.searchsorted(self._ends, number, side="right"))][0]


def numbered(classes: int) -> tuple[str, ...]:
    """The names of classes that have none."""
    return tuple(map(str, range(classes)))


def _stamp(path: Path) -> Stamp:
    try:
        status = path.stat()
    except OSError as error:
        raise BatchNormError(f"the shard {path} cannot be read: {error}") from error
    return str(path.resolve()), str(status.st_size), str(status.st_mtime_ns)


def _read_index(file: Path) -> dict[Stamp, Index]:
    """What `save_index` wrote, by shard; nothing if it is not there or damaged: the shards themselves are."""
    try:
        with file.open("rb") as content, np.load(content) as index:
            ends = index["ends"][:-1]
            parts = zip(np.split(index["keys"], ends), np.split(index["places"], ends), strict=True)
            return dict(zip(map(tuple, index["stamps"].tolist()), parts, strict=True))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return {}


def _index_shard(path: Path) -> Index:
    """What the headers of a shard say of every image."""
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
            end = tar.offset
        # tarfile takes a file cut between two members, or within a header, for a whole one.
        with path.open("rb") as file:
            file.seek(end)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("truncated: it lacks the zeros that end a tar file")
    except (tarfile.TarError, OSError, ValueError) as error:
        raise BatchNormError(f"the shard {path} is damaged: {error}. Copy or make it again.") from error
    if not images:
        raise BatchNormError(f"the shard {path} has no images; wanted KEY.jpg and KEY.cls in it")
    if missing := sorted(images.keys() - labels.keys()):
        raise BatchNormError(f"the shard {path} has no label {missing[0]}.cls for its image {missing[0]}")
    if min(labels.values()) < 0:
        raise BatchNormError(f"the shard {path} has a label below 0")
    places = [(*place, labels[key]) for key, place in images.items()]
    return np.array([os.fsencode(key) for key in images]), np.array(places, dtype=np.int64)
