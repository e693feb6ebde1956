"""Images in class folders: CLASS/IMAGE.jpg."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch import Tensor

from ...errors import BatchNormError
from ...files import read_regular
from .damage import DamagedImage
from .decode import EXTENSIONS, MOST_BYTES, decode
from .interface import virtual_shards


class FolderImages:
    """Images in one folder a class, as torchvision's ImageFolder reads them. Classes are numbered by name.

    The images are shuffled once, by a fixed seed, and split into virtual shards of 1,000.
    """

    channels = 3
    in_memory = False

    def __init__(self, folder: Path) -> None:
        try:
            self.classes = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir()))
        except OSError as error:
            raise _unreadable(error) from error
        if not self.classes:
            raise BatchNormError(f"{folder} has no class folders; wanted {folder.name}/CLASS/IMAGE.jpg")
        found, labels = [], []
        for label, name in enumerate(self.classes):
            paths = _image_files(folder / name)
            if not paths:
                raise BatchNormError(f"the class folder {folder / name} has no images ({', '.join(EXTENSIONS)})")
            found += paths
            labels += [label] * len(paths)
        order = np.random.default_rng(0).permutation(len(found))
        # Arrays, not lists: reference counts would make every worker copy a million objects.
        self._paths, self._labels = np.array([os.fsencode(path) for path in found])[order], np.array(labels)[order]
        self.shards = virtual_shards(len(found))

    def __len__(self) -> int:
        return len(self._labels)

    def name(self, number: int) -> str:
        """Return the path of an image."""
        return os.fsdecode(self._paths[number])

    def label(self, number: int) -> int:
        """Return the label of an image."""
        return int(self._labels[number])

    def read(self, number: int) -> Tensor:
        """Return an image: (3, H, W), uint8."""
        path = self.name(number)
        try:
            return decode(read_regular(Path(path), MOST_BYTES))
        except ValueError as error:
            raise DamagedImage(path, str(error).removeprefix(f"{path} ")) from error


def _image_files(folder: Path) -> list[str]:
    """Return the image files at any depth, sorted. Follow links, as torchvision's ImageFolder does.

    Raises:
        BatchNormError: a folder cannot be read.
    """
    try:
        return sorted(_walk(str(folder), ()))
    except OSError as error:
        raise _unreadable(error) from error


def _walk(folder: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """Yield the paths of the image files. Skip a link to one of the folders `above`, which would never end."""
    status = os.stat(folder)  # noqa: PTH116  (a million Path objects are slow)
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _walk(entry.path, (*above, here))
            elif entry.name.lower().endswith(EXTENSIONS):
                yield entry.path


def _unreadable(error: OSError) -> BatchNormError:
    return BatchNormError(f"{error.filename} cannot be read: {error.strerror}")
