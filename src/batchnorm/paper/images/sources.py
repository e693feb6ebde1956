"""Where labelled images come from: class folders, WebDataset shards, Fashion-MNIST; each read by its number."""

from __future__ import annotations

import hashlib
import os
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from ...errors import BatchNormError
from .decode import EXTENSIONS, DamagedImage, decode
from .idx import read_idx, unpacked
from .shards import ShardImages, numbered

Split = Literal["train", "val"]
INDEX = "shards-{}.npz"  # by split
VIRTUAL_SHARD = 1000  # images; of what does not come in shards
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # its package dataset-fashion-mnist
FASHION_HOME = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
FASHION_FILES = {"train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
                 "val": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")}  # fmt: skip
# SHA-256 of the files' content, unpacked: packages compress it anew.
FASHION_SUMS = {
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
}


class Images(Protocol):
    """The labelled images of one split.

    `classes` are the names of the labels; `shards` the numbers of images in each shard, whose images are neighbours:
    0 to shards[0] - 1, and so on.
    """

    classes: tuple[str, ...]
    channels: int
    shards: list[int]

    def __len__(self) -> int: ...

    def name(self, number: int) -> str: ...

    def label(self, number: int) -> int: ...

    def read(self, number: int) -> Tensor:
        """(channels, H, W), uint8.

        Raises:
            DamagedImage: it can't be decoded.
        """
        ...


def open_both(data: str, index: Path | None = None) -> tuple[Images, Images]:
    """The images to train on and to validate, by `open_images`, with labels that agree."""
    train, val = open_images(data, "train", index), open_images(data, "val", index)
    check_classes(val, train.classes)
    return train, val


def open_images(data: str, split: Split, index: Path | None = None) -> Images:
    """The images that `--data` names: "fashion", or a folder with train and val in class folders or in shards.

    `index`: a folder in which `save_index` has kept what the headers of the shards say.

    Raises:
        BatchNormError: nothing there that can be read; an empty class; a shard that is damaged.
    """
    if data == "fashion":
        return FashionImages(split)
    folder = Path(data)
    if not folder.is_dir():
        raise BatchNormError(f"--data {data} is no folder; wanted one with train and val, or fashion")
    shards = sorted(folder.glob(f"{split}-*.tar")) or sorted((folder / split).glob("*.tar"))
    if shards:
        return ShardImages(shards, index / INDEX.format(split) if index is not None else None, split == "train")
    if not (folder / split).is_dir():
        raise BatchNormError(
            f"{folder} has neither {split}-*.tar nor a folder {split}; wanted WebDataset shards, or a folder a class, "
            f"{split}/CLASS/IMAGE.jpg"
        )
    return FolderImages(folder / split)


def save_index(images: tuple[Images, Images], folder: Path) -> None:
    """Keep in `folder` what it takes long to find out of `open_both`'s images: the index of shards."""
    for split, part in zip(("train", "val"), images, strict=True):
        if isinstance(part, ShardImages):
            part.save_index(folder / INDEX.format(split))


def has_index(folder: Path) -> bool:
    """Whether `save_index` has written there."""
    return (folder / INDEX.format("train")).exists()


def check_classes(images: Images, classes: Sequence[str]) -> None:
    """Check that validation `images` have labels that a network of these classes has learned.

    Raises:
        BatchNormError: names or labels that it has not.
    """
    if images.classes == numbered(len(images.classes)):  # of shards: as many as there are labels
        if len(images.classes) > len(classes):
            raise BatchNormError(f"a label is {len(images.classes) - 1}, past the network's {len(classes)} classes")
    elif unknown := sorted(set(images.classes) - set(classes)):
        raise BatchNormError(f"{len(unknown)} classes to validate were not trained, such as {unknown[0]!r}")
    elif images.classes != tuple(classes):
        missing = sorted(set(classes) - set(images.classes))
        raise BatchNormError(f"classes without validation images, such as {missing[0]!r}: labels would not agree")


class FolderImages:
    """A folder a class, as torchvision's ImageFolder: CLASS/IMAGE.jpg; classes are numbered by name.

    The images stand in an order drawn once, the same everywhere, in virtual shards of 1,000.
    """

    channels = 3

    def __init__(self, folder: Path) -> None:
        self.classes = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir()))
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
        # Arrays, since workers would come to copy a million objects by counting references to them.
        self._paths, self._labels = np.array([os.fsencode(path) for path in found])[order], np.array(labels)[order]
        self.shards = virtual_shards(len(found))

    def __len__(self) -> int:
        return len(self._labels)

    def name(self, number: int) -> str:
        return os.fsdecode(self._paths[number])

    def label(self, number: int) -> int:
        return int(self._labels[number])

    def read(self, number: int) -> Tensor:
        path = self.name(number)
        try:
            return decode(Path(path).read_bytes())
        except (OSError, ValueError) as error:
            raise DamagedImage(path, str(error)) from error


class FashionImages:
    """Fashion-MNIST, 28x28 grey, in memory, from Debian's package, else from a cache, else from its public home."""

    classes: tuple[str, ...] = FASHION_CLASSES
    channels = 1

    def __init__(self, split: Split) -> None:
        images, labels = (read_idx(_fashion_file(name)) for name in FASHION_FILES[split])
        self._pixels = torch.from_numpy(images.copy())[:, None]
        self._labels = labels.tolist()
        self.shards = virtual_shards(len(self._labels))

    def __len__(self) -> int:
        return len(self._labels)

    def name(self, number: int) -> str:
        return f"Fashion-MNIST, image {number}"

    def label(self, number: int) -> int:
        return self._labels[number]

    def read(self, number: int) -> Tensor:
        return self._pixels[number]


def virtual_shards(images: int) -> list[int]:
    """Shards of 1,000 for images that come without, the last one smaller."""
    return [min(VIRTUAL_SHARD, images - first) for first in range(0, images, VIRTUAL_SHARD)]


def _image_files(folder: Path) -> list[str]:
    """The image files at any depth, by name; through links, as torchvision's ImageFolder."""
    return sorted(
        os.path.join(parent, name)  # noqa: PTH118  (a million Path objects take their time)
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.lower().endswith(EXTENSIONS)
    )


def _fashion_file(name: str) -> Path:
    """One file of Fashion-MNIST, verified; fetched if it is nowhere here."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "batchnorm" / "fashion-mnist"
    for folder in (DEBIAN, cache):
        if (folder / f"{name}.gz").is_file():
            return _verified(folder / f"{name}.gz", name)
    url = f"{FASHION_HOME}{name}.gz"
    print(f"Fetching {url} into {cache}", flush=True)
    partial = cache / f"{name}.{os.getpid()}.partial"  # processes may fetch at the same time
    try:
        cache.mkdir(parents=True, exist_ok=True)
        urllib.request.urlretrieve(url, partial, _print_percent)
        return _verified(partial, name).replace(cache / f"{name}.gz")
    except OSError as error:
        raise BatchNormError(
            f"Fashion-MNIST is neither in {DEBIAN} nor in {cache}, and cannot be fetched: {error}. Install Debian's "
            f"dataset-fashion-mnist, or put its four .gz files into {cache}"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _print_percent(blocks: int, block_size: int, size: int) -> None:
    done = blocks * block_size
    percent = min(100, 100 * done // size) if size > 0 else 0
    print(f"\r{percent} % of {size / 1e6:.1f} MB", end="\n" if done >= size else "", file=sys.stderr, flush=True)


def _verified(path: Path, name: str) -> Path:
    if hashlib.sha256(unpacked(path)).hexdigest() != FASHION_SUMS[name]:
        raise BatchNormError(f"{path} is not Fashion-MNIST's {name}: its checksum differs. Remove or replace it.")
    return path
