"""Where labelled images come from: class folders, WebDataset shards, Fashion-MNIST; each read by its number."""

from __future__ import annotations

import hashlib
import io
import os
import sys
import tarfile
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import BatchNormError
from .data import read_idx, unpacked

Split = Literal["train", "val"]
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
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


class DamagedImage(Exception):
    """One image that can't be read; its name and why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)  # both, since workers send it pickled
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


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


def open_images(data: str, split: Split) -> Images:
    """The images that `--data` names: "fashion", or a folder with train and val in class folders or in shards.

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
        return ShardImages(shards, split)
    if not (folder / split).is_dir():
        raise BatchNormError(
            f"{folder} has neither {split}-*.tar nor a folder {split}; wanted WebDataset shards, or a folder a class, "
            f"{split}/CLASS/IMAGE.jpg"
        )
    return FolderImages(folder / split)


def check_classes(images: Images, classes: Sequence[str]) -> None:
    """Check that validation `images` have labels that a network of these classes has learned.

    Raises:
        BatchNormError: names or labels that it has not.
    """
    if images.classes == _numbered(len(images.classes)):  # of shards: as many as there are labels
        if len(images.classes) > len(classes):
            raise BatchNormError(f"a label is {len(images.classes) - 1}, past the network's {len(classes)} classes")
    elif unknown := sorted(set(images.classes) - set(classes)):
        raise BatchNormError(f"{len(unknown)} classes to validate were not trained, such as {unknown[0]!r}")
    elif images.classes != tuple(classes):
        missing = sorted(set(classes) - set(images.classes))
        raise BatchNormError(f"classes without validation images, such as {missing[0]!r}: labels would not agree")


def _numbered(classes: int) -> tuple[str, ...]:
    """The names of classes that have none."""
    return tuple(map(str, range(classes)))


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


class ShardImages:
    """WebDataset shards: tar files in which KEY.cls holds the label, a number, of KEY.jpg (or .jpeg, .png, …).

    The tar headers are read once, at the start. From then on any image is read from its place in its shard.
    """

    channels = 3

    def __init__(self, paths: Sequence[Path], split: Split) -> None:
        self._paths = [str(path) for path in paths]
        self.shards, keys, places = [], [], []
        for shard, path in enumerate(paths):
            samples = _index_shard(path)
            self.shards.append(len(samples))
            keys += [os.fsencode(key) for key, *_ in samples]
            places += [(shard, offset, size, label) for _, offset, size, label in samples]
        self._keys, self._places = np.array(keys), np.array(places, dtype=np.int64)
        found = np.unique(self._places[:, 3])
        if split == "train" and len(found) <= found[-1]:
            empty = next(label for label, other in enumerate(found) if label != other)
            raise BatchNormError(
                f"the shards have labels up to {found[-1]} and no image of class {empty}; "
                "wanted labels from 0, each with images"
            )
        self.classes = _numbered(int(found[-1]) + 1)

    def __len__(self) -> int:
        return len(self._places)

    def name(self, number: int) -> str:
        return f"{self._paths[self._places[number, 0]]}, {os.fsdecode(self._keys[number])}"

    def label(self, number: int) -> int:
        return int(self._places[number, 3])

    def read(self, number: int) -> Tensor:
        shard, offset, size, _ = self._places[number].tolist()
        try:
            with Path(self._paths[shard]).open("rb") as file:
                file.seek(offset)
                return decode(file.read(size))
        except (OSError, ValueError) as error:
            raise DamagedImage(self.name(number), str(error)) from error


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


def decode(content: bytes) -> Tensor:
    """An image file's content as (3, H, W), uint8, whatever its mode (grey, CMYK, palette).

    Raises:
        ValueError: it is no image, or is truncated.
    """
    # An extra, which the other experiments do without. (Torchvision's decoder takes two thirds of its time for the same
    # pixels, and is deprecated.)
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)) as image:
            pixels = np.array(image.convert("RGB"))
    except UnidentifiedImageError as error:  # it would name an object in memory
        raise ValueError("not an image, or of an unknown format") from error
    except Exception as error:  # broken bytes make a decoder raise anything
        raise ValueError(str(error)) from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _image_files(folder: Path) -> list[str]:
    """The image files at any depth, by name; through links, as torchvision's ImageFolder."""
    return sorted(
        os.path.join(parent, name)  # noqa: PTH118  (a million Path objects take their time)
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.lower().endswith(EXTENSIONS)
    )


def _index_shard(path: Path) -> list[tuple[str, int, int, int]]:
    """(key, offset, bytes, label) of every image of a shard."""
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
    return [(key, *place, labels[key]) for key, place in images.items()]


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
