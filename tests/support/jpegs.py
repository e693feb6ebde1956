"""Generated JPEGs that a network can learn: 10 classes, each with a color and a direction of stripes."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = tuple(f"class{label}" for label in range(10))


def jpeg(label, rng, size=(60, 48)):
    """Return the bytes of one image of `label`. Its size is (width, height)."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    stripes = np.sin((x if label % 2 else y) * 0.8 + rng.uniform(0, 6)) * 40
    color = np.array([(label * 25) % 256, (label * 77 + 40) % 256, (255 - label * 25) % 256])
    pixels = color + stripes[..., None] + rng.normal(0, 10, (height, width, 3))
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def samples(per_class, seed):
    """Yield (label, name, content) of every image."""
    rng = np.random.default_rng(seed)
    for number in range(per_class):
        for label in range(len(CLASSES)):
            yield label, f"{label}_{number:03d}", jpeg(label, rng)


def jpeg_tree(folder, train=15, val=5):
    """Write class folders with so many images a class: FOLDER/train/CLASS/NAME.jpg and FOLDER/val/…."""
    for split, per_class in (("train", train), ("val", val)):
        for label, name, content in samples(per_class, seed=per_class):
            path = folder / split / CLASSES[label] / f"{name}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return folder


def damage(*paths):
    """Overwrite image files with bytes that are no image."""
    for path in paths:
        Path(path).write_bytes(b"no image")


def add(tar, name, content):
    """Add one file to a tar file."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def jpeg_shards(folder, train=15, val=5, shards=3):
    """Write WebDataset shards of the same images: FOLDER/train-000000.tar, …."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, per_class in (("train", train), ("val", val)):
        found = list(samples(per_class, seed=per_class))
        for number in range(shards):
            with tarfile.open(folder / f"{split}-{number:06d}.tar", "w") as tar:
                for label, name, content in found[number::shards]:
                    add(tar, f"{name}.jpg", content)
                    add(tar, f"{name}.cls", str(label).encode())
    return folder
