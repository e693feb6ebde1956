"""Load binary MNIST, from the package or from IDX files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...errors import BatchNormError
from ..images.idx import read_idx

PACKED = Path(__file__).with_name("mnist.npz")
THRESHOLD = 127  # a pixel above it is 1; the paper says only "binary image"
PIXELS = 28 * 28
IDX_NAMES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}


@dataclass(frozen=True)
class Mnist:
    """Images (N, 784), uint8, 0 or 1, and labels (N,), int64, 0 to 9."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_mnist(folder: Path | None = None) -> Mnist:
    """Return the copy in the package, or that of the four IDX files in `folder`, each gzipped (.gz) or not.

    Raises:
        BatchNormError: a file is missing, truncated or no IDX file, or images and labels do not fit.
    """
    if folder is None:
        with np.load(PACKED, allow_pickle=False) as packed:
            arrays = {name: packed[name] for name in IDX_NAMES}
        for name in ("train_images", "test_images"):
            arrays[name] = np.unpackbits(arrays[name], axis=1, count=PIXELS)
    else:
        arrays = {name: read_idx(_find_idx(folder, file)) for name, file in IDX_NAMES.items()}
        for split in ("train", "test"):
            images = f"{split}_images"
            _check_split(folder, split, arrays[images], arrays[f"{split}_labels"])
            arrays[images] = (arrays[images] > THRESHOLD).astype(np.uint8).reshape(-1, PIXELS)
    return Mnist(
        **{
            name: torch.from_numpy(array.astype(np.int64) if name.endswith("labels") else array)
            for name, array in arrays.items()
        }
    )


def _find_idx(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():  # `read_idx` refuses what is no regular file
            return path
    raise BatchNormError(
        f"{folder} has neither {name} nor {name}.gz; --data wants a folder with the four IDX files of MNIST: "
        + ", ".join(IDX_NAMES.values())
    )


def _check_split(folder: Path, split: str, images: np.ndarray, labels: np.ndarray) -> None:
    if images.ndim != 3 or images.shape[1:] != (28, 28) or labels.shape != (len(images),) or not len(images):
        raise BatchNormError(
            f"{folder}: the {split} images have shape {images.shape} and the labels {labels.shape}; "
            "wanted (N, 28, 28) and (N,) with the same N"
        )
    if labels.max() > 9:
        raise BatchNormError(f"{folder}: a {split} label is {labels.max()}; wanted 0 to 9")
