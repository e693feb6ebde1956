"""WebDataset shards: tar files of labeled images, read through an index of their headers."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from torch import Tensor

from ...atomic import write_atomically
from ...errors import BatchNormError
from ...files import check_regular, check_unpacked, open_regular
from .damage import DamagedImage
from .decode import EXTENSIONS, MOST_BYTES, decode

MOST_CLASSES = 1_000_000
_MOST_HEADER = 2**20  # bytes: of a long name, or of attributes
_MOST_DIGITS = 64  # of a label


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
    in_memory = False

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
            if size > MOST_BYTES:
                raise ValueError(f"{size:,} bytes; wanted at most {MOST_BYTES:,}")
            with open_regular(Path(self._path(number))) as file:
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
        BatchNormError: the shard is no regular file, is damaged, or has no images. Or an image has no label, an image
            or a label is a link, or a label is not from 0 to 999,999.
    """
    images, labels = {}, {}
    try:
        with _Bounded(open_regular(path).detach()) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in _members(tar):
                folder, slash, base = member.name.rpartition("/")
                stem, _, extension = base.partition(".")
                key = folder + slash + stem
                if f".{extension.lower()}" in EXTENSIONS:
                    images[key] = (_check_stored(path, member).offset_data, member.size)
                elif extension == "cls":
                    labels[key] = _read_label(file, _check_stored(path, member))
            _check_end(file, tar.offset)
    except (tarfile.TarError, OSError, ValueError) as error:
        if isinstance(error, BatchNormError):
            raise
        raise BatchNormError(f"the shard {path} is damaged: {error}. Copy or make it again.") from error
    _check_labels(path, images, labels)
    places = [(*place, labels[key]) for key, place in images.items()]
    return ShardIndex(np.array([os.fsencode(key) for key in images]), np.array(places, dtype=np.int64))


class _Bounded(io.BufferedReader):
    """A file for tarfile, which reads as many bytes at once as a header announces."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _MOST_HEADER:
            raise tarfile.ReadError(f"a header announces {size:,} bytes; wanted at most {_MOST_HEADER:,}")
        return super().read(size)


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members. A negative size would lead tarfile back to members before."""
    reached = -1
    for member in tar:
        if tar.offset <= reached:
            raise tarfile.ReadError(f"{member.name} has a negative size")
        reached = tar.offset
        yield member


def _check_stored(path: Path, member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Return a member whose content is in one piece at its place in the shard."""
    if not member.isreg() or member.issparse():
        kind = "a link" if member.islnk() or member.issym() else "no regular file"
        raise BatchNormError(f"the shard {path} has {member.name}, which is {kind}; store the file itself")
    return member


def _read_label(file: BinaryIO, member: tarfile.TarInfo) -> int:
    if member.size > _MOST_DIGITS:
        raise tarfile.ReadError(f"the label {member.name} has {member.size:,} bytes; wanted a number")
    file.seek(member.offset_data)  # tarfile goes to the next header by itself
    return int(file.read(member.size))


def _check_end(file: BinaryIO, end: int) -> None:
    """Check for the zeros that end a tar file. Tarfile accepts a file cut between members or within a header."""
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
    if max(labels.values()) >= MOST_CLASSES:
        key = max(labels, key=lambda key: labels[key])
        raise BatchNormError(f"the shard {path} has the label {key}.cls of {MOST_CLASSES:,} or more; wanted less")


def _stamp(path: Path) -> Stamp:
    status = check_regular(path)
    return Stamp(str(path.resolve()), str(status.st_size), str(status.st_mtime_ns))


def _load_index(file: Path) -> dict[Stamp, ShardIndex]:
    """Return the indexes that `save_index` wrote, without damaged ones. Return none if the file is missing."""
    try:
        check_unpacked(file)
        with open_regular(file) as content, np.load(content) as index:
            ends = index["ends"][:-1]
            parts = zip(np.split(index["keys"], ends), np.split(index["places"], ends), strict=True)
            stamps = [Stamp(*stamp) for stamp in index["stamps"].tolist()]
            found = {stamp: ShardIndex(*part) for stamp, part in zip(stamps, parts, strict=True)}
            return {stamp: part for stamp, part in found.items() if _is_whole(part)}
    except Exception:  # numpy documents no type for a damaged file; TokenError and BadZipFile are among them
        return {}


def _is_whole(part: ShardIndex) -> bool:
    keys, places = part
    return bool(
        keys.ndim == 1
        and keys.dtype.kind == "S"
        and len(keys)
        and places.dtype == np.int64
        and places.shape == (len(keys), 3)
        and places.min() >= 0
        and places[:, 2].max() < MOST_CLASSES
    )
