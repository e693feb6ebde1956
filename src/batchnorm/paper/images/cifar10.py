"""CIFAR-10: found in the cache or downloaded, and verified. It is the binary version, which holds no pickles."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...errors import BatchNormError
from ...files import is_regular, open_regular
from .download import cache_folder, download
from .interface import Split, virtual_shards

HOME = "https://www.cs.toronto.edu/~kriz/"
ARCHIVE = "cifar-10-binary.tar.gz"
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FILES = {"train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "val": ("test_batch.bin",)}
SHAPE = (3, 32, 32)
RECORD = 1 + 3 * 32 * 32  # bytes: the label, then the red, the green and the blue pixels, row by row


class Cifar10Images:
    """CIFAR-10 in memory: 32x32, color."""

    classes: tuple[str, ...] = CLASSES
    channels = 3
    in_memory = True

    def __init__(self, split: Split) -> None:
        records = read_records(find_archive(), FILES[split])
        self._labels = records[:, 0].tolist()
        self._pixels = torch.from_numpy(records[:, 1:].reshape(-1, *SHAPE))
        self.shards = virtual_shards(len(self._labels))

    def __len__(self) -> int:
        return len(self._labels)

    def name(self, number: int) -> str:
        """Return the number of an image, for messages."""
        return f"CIFAR-10, image {number}"

    def label(self, number: int) -> int:
        """Return the label of an image."""
        return self._labels[number]

    def read(self, number: int) -> Tensor:
        """Return an image: (3, 32, 32), uint8."""
        return self._pixels[number]


def find_archive() -> Path:
    """Return the verified path of the archive in the cache. Download it if it is not there.

    Raises:
        BatchNormError: the checksum of the archive that is there differs.
        DownloadError: the download failed, or its checksum differs.
    """
    file = cache_folder("cifar-10") / ARCHIVE
    if is_regular(file):
        check_archive(file)
        return file
    missing, advice = f"CIFAR-10 is not in {file.parent}", f"Put {ARCHIVE} there, or name a folder of its images."
    return download(HOME + ARCHIVE, file, check_archive, missing, advice)


def check_archive(path: Path) -> None:
    """Raise BatchNormError unless the file is CIFAR-10's archive, by its SHA-256."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    if digest.hexdigest() != SHA256:
        raise BatchNormError(f"{path} is not CIFAR-10's {ARCHIVE}: its checksum differs; remove or replace it")


def read_records(archive: Path, names: Sequence[str]) -> np.ndarray:
    """Return the records of some files of a verified archive, in the archive's order: (N, RECORD), uint8."""
    with open_regular(archive) as file, tarfile.open(fileobj=file, mode="r|gz") as tar:
        found = {
            member.name: content.read()
            for member in tar
            if Path(member.name).name in names and (content := tar.extractfile(member)) is not None
        }
    return np.concatenate([np.frombuffer(found[name], np.uint8).reshape(-1, RECORD) for name in sorted(found)])
