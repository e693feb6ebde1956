"""Fashion-MNIST: found on this machine or downloaded, and verified."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from ...errors import BatchNormError
from ...files import is_regular
from .download import cache_folder, download
from .idx import read_idx, unpacked
from .interface import Split, virtual_shards

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # from Debian's package dataset-fashion-mnist
HOME = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
FILES = {"train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
         "val": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")}  # fmt: skip
# Of the unpacked content, since packages compress the files anew.
SHA256 = {
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
}
MOST_BYTES = 16 + 60_000 * 28 * 28  # of the largest file, unpacked


class FashionImages:
    """Fashion-MNIST in memory: 28x28, gray."""

    classes: tuple[str, ...] = CLASSES
    channels = 1
    in_memory = True

    def __init__(self, split: Split) -> None:
        images, labels = (read_idx(find_file(name)) for name in FILES[split])
        self._pixels = torch.from_numpy(images.copy())[:, None]
        self._labels = labels.tolist()
        self.shards = virtual_shards(len(self._labels))

    def __len__(self) -> int:
        return len(self._labels)

    def name(self, number: int) -> str:
        """Return the number of an image, for messages."""
        return f"Fashion-MNIST, image {number}"

    def label(self, number: int) -> int:
        """Return the label of an image."""
        return self._labels[number]

    def read(self, number: int) -> Tensor:
        """Return an image: (1, 28, 28), uint8."""
        return self._pixels[number]


def find_file(name: str) -> Path:
    """Return the verified path of one file, from Debian's package or the cache. Otherwise download it to the cache.

    Raises:
        BatchNormError: the checksum of a file that is there differs.
        DownloadError: the download failed, or its checksum differs.
    """
    cache = cache_folder("fashion-mnist")

    def check(path: Path) -> None:
        with unpacked(path) as file:
            content = file.read(MOST_BYTES)
        if hashlib.sha256(content).hexdigest() != SHA256[name]:
            raise BatchNormError(f"{path} is not Fashion-MNIST's {name}: its checksum differs; remove or replace it")

    for path in (DEBIAN / f"{name}.gz", cache / f"{name}.gz"):
        if is_regular(path):
            check(path)
            return path
    missing = f"Fashion-MNIST is neither in {DEBIAN} nor in {cache}"
    advice = f"Install Debian's dataset-fashion-mnist, or put its four .gz files into {cache}."
    return download(f"{HOME}{name}.gz", cache / f"{name}.gz", check, missing, advice)
