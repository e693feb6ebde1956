"""Open the images that `--data` names: class folders, WebDataset shards, or a data set of `NAMED`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...errors import BatchNormError
from .cifar10 import Cifar10Images
from .fashion import FashionImages
from .folders import FolderImages
from .interface import Images, Split
from .shards import ShardImages, numbered_classes

INDEX = "shards-{}.npz"  # by split
NAMED = {"fashion": FashionImages, "cifar10": Cifar10Images}


def open_both(data: str, index: Path | None = None) -> tuple[Images, Images]:
    """Open the images to train on and those to validate on, by `open_images`. Check that their labels agree."""
    train, val = open_images(data, "train", index), open_images(data, "val", index)
    check_classes(val, train.classes)
    return train, val


def open_images(data: str, split: Split, index: Path | None = None) -> Images:
    """Open the images of one split.

    Arguments:
        data: a name in `NAMED`, or a folder with train and val, as class folders or as shards.
        split: "train" or "val".
        index: a folder in which `save_index` has written the index of the shards, if any.

    Raises:
        BatchNormError: there is nothing to read; a class is empty; a shard is damaged.
    """
    if data in NAMED:
        return NAMED[data](split)
    folder = Path(data)
    if not folder.is_dir():
        raise BatchNormError(f"--data {data} is not a folder; wanted one with train and val, or {', '.join(NAMED)}")
    shards = sorted(folder.glob(f"{split}-*.tar")) or sorted((folder / split).glob("*.tar"))
    if shards:
        return ShardImages(shards, index / INDEX.format(split) if index is not None else None, split == "train")
    if not (folder / split).is_dir():
        raise BatchNormError(
            f"{folder} has neither {split}-*.tar nor a folder {split}; wanted WebDataset shards, or one folder "
            f"a class, {split}/CLASS/IMAGE.jpg"
        )
    return FolderImages(folder / split)


def save_index(images: tuple[Images, Images], folder: Path) -> None:
    """Write the index of the shards of `open_both`'s images into `folder`. Images without shards need none.

    Raises:
        StorageError: the disk is full, or the folder is read-only.
    """
    for split, part in zip(("train", "val"), images, strict=True):
        if isinstance(part, ShardImages):
            part.save_index(folder / INDEX.format(split))


def has_index(folder: Path) -> bool:
    """Return True if `save_index` has written an index into `folder`."""
    return (folder / INDEX.format("train")).exists()


def check_classes(images: Images, classes: Sequence[str]) -> None:
    """Check that the labels of validation images agree with the classes of a network.

    Raises:
        BatchNormError: a label is unknown to the network, or labels would be numbered differently.
    """
    if images.classes == numbered_classes(len(images.classes)):  # Shards: as many classes as labels seen.
        if len(images.classes) > len(classes):
            raise BatchNormError(f"a label is {len(images.classes) - 1}, past the network's {len(classes)} classes")
    elif unknown := sorted(set(images.classes) - set(classes)):
        raise BatchNormError(f"{len(unknown)} validation classes were not trained, such as {unknown[0]!r}")
    elif images.classes != tuple(classes):
        missing = sorted(set(classes) - set(images.classes))
        raise BatchNormError(f"classes without validation images, such as {missing[0]!r}: labels would not agree")
