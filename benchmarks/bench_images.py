"""Measure how many JPEGs per second one core reads, decodes and distorts to 224x224, against torchvision.

    python benchmarks/bench_images.py [--rounds 7] [--out records/inception-speed/images.json]

The files are 200 generated JPEGs of 500x375, in class folders and in shards. Torchvision's pipelines are ImageFolder
with RandomResizedCrop and a horizontal flip, once without and once with ColorJitter. ColorJitter makes all changes of
"strong" except the noise. All pipelines end with normalized float32.

Before the clock starts, the folders, the shards and torchvision must give the same pixels, and the center crops must
agree. The contenders alternate.

The rate of the loader with --workers N processes is measured too; the default is one per core.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import datasets
from torchvision.transforms import v2

from batchnorm.paper.images.crops import center_crop
from batchnorm.paper.images.distortions import Distort
from batchnorm.paper.images.interface import Images
from batchnorm.paper.images.loader import ImageBatches, default_workers
from batchnorm.paper.images.normalize import normalize
from batchnorm.paper.images.sources import open_images
from batchnorm.paper.training.versions import versions

IMAGES, CLASSES, SIZE, BATCH = 200, 10, 224, 32
TENSOR = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]  # fmt: skip  # noqa: E501
PATCH = [v2.RandomResizedCrop(SIZE, antialias=True), v2.RandomHorizontalFlip()]
TORCHVISION = {
    "torchvision, patches": v2.Compose([*PATCH, *TENSOR]),
    "torchvision, patches and ColorJitter": v2.Compose([*PATCH, v2.ColorJitter(0.5, 0.5, 0.5), *TENSOR]),
}


def photograph(rng: np.random.Generator) -> bytes:
    """Return a JPEG with detail at every scale, as in a photograph."""
    pixels = torch.zeros(1, 3, 375, 500)
    for octave in range(2, 9):
        noise = torch.from_numpy(rng.normal(size=(1, 3, 3 * 2**octave // 4, 2**octave))).float()
        pixels += torch.nn.functional.interpolate(noise, (375, 500), mode="bilinear") * 0.8**octave * 90
    file = io.BytesIO()
    array = (pixels[0] + 128).clamp(0, 255).byte().permute(1, 2, 0).numpy()
    Image.fromarray(array).save(file, "JPEG", quality=92)
    return file.getvalue()


def write_images(folder: Path) -> float:
    """Write the same images to FOLDER/folders and FOLDER/shards. Return the mean size of a file in kB."""
    rng = np.random.default_rng(0)
    contents = [photograph(rng) for _ in range(IMAGES)]
    (folder / "shards").mkdir()
    with tarfile.open(folder / "shards" / "train-0.tar", "w") as tar:
        for number, content in enumerate(contents):
            path = folder / "folders" / "train" / str(number % CLASSES) / f"{number:03d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            for ending, part in (("jpg", content), ("cls", str(number % CLASSES).encode())):
                member = tarfile.TarInfo(f"{number:03d}.{ending}")
                member.size = len(part)
                tar.addfile(member, io.BytesIO(part))
    return sum(map(len, contents)) / len(contents) / 1e3


def check(ours: dict[str, Images], folder: Path) -> None:
    """Raise if the sources do not give the same pixels, or if center crops differ from torchvision's.

    A difference of 2 of 255 is allowed, since torchvision rounds in another order.
    """
    whole = datasets.ImageFolder(str(folder), v2.PILToTensor())
    expected = {image.numpy().tobytes(): image for image, _ in whole}
    for images in ours.values():
        assert {images.read(number).numpy().tobytes() for number in range(IMAGES)} == expected.keys()
    crop = v2.Compose([v2.Resize(256, antialias=True), v2.CenterCrop(SIZE)])
    for image in list(expected.values())[:10]:
        assert (center_crop(image, SIZE).int() - crop(image).int()).abs().max() <= 2


def ours_once(images: Images, strength: str) -> Callable[[int], object]:
    distort = Distort(SIZE, strength)  # pyright: ignore[reportArgumentType]

    def once(number: int) -> object:
        return normalize(distort(images.read(number), np.random.default_rng([1, number])))

    return once


def seconds(once: Callable[[int], object]) -> float:
    start = time.perf_counter()
    for number in range(IMAGES):
        once(number)
    return time.perf_counter() - start


def loader_rate(images: Images, strength: str, workers: int) -> float:
    """Return the images per second of the loader after a warm-up."""
    distort = Distort(SIZE, strength)  # pyright: ignore[reportArgumentType]
    batches = ImageBatches(images, distort, BATCH, seed=1, within_shard=True, workers=workers).batches(0)
    warm_up, counted = 2 * max(1, workers), 24
    for _ in islice(batches, warm_up):
        pass
    start = time.perf_counter()
    for _ in islice(batches, counted):
        pass
    return BATCH * counted / (time.perf_counter() - start)


def fashion_milliseconds() -> dict[str, float]:
    """Return the median milliseconds per mini-batch of Fashion-MNIST by strength, without worker processes."""
    images, found = open_images("fashion", "train"), {}
    for strength in ("strong", "weak", "none"):
        batches = ImageBatches(images, Distort(28, strength), BATCH, seed=1, within_shard=True)  # pyright: ignore[reportArgumentType]
        times = []
        for step in range(300):
            start = time.perf_counter()
            normalize(batches[step].images)
            times.append(time.perf_counter() - start)
        found[strength] = 1e3 * statistics.median(times)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        kilobytes = write_images(Path(name))
        ours = {kind: open_images(f"{name}/{kind}", "train") for kind in ("folders", "shards")}
        check(ours, Path(name) / "folders" / "train")
        contenders = {f"ours, {s}, {kind}": ours_once(ours[kind], s) for s in ("strong", "weak") for kind in ours}
        contenders["ours, decoding alone"] = ours["folders"].read
        for title, transform in TORCHVISION.items():
            contenders[title] = datasets.ImageFolder(f"{name}/folders/train", transform).__getitem__
        times = {title: [] for title in contenders}
        for turn in range(options.rounds + 1):
            for title, once in contenders.items():
                taken = seconds(once)
                if turn:  # the first is the warm-up
                    times[title].append(taken)
        workers = options.workers or default_workers(ours["folders"])
        loader = {s: loader_rate(ours["folders"], s, workers) for s in ("strong", "weak")}
    rates = {title: sorted(IMAGES / taken for taken in values) for title, values in times.items()}
    print(f"{IMAGES} JPEGs of 500x375, {kilobytes:.0f} kB; images a second on one core: median (least to most)")
    for title, values in rates.items():
        print(f"{title:38} {statistics.median(values):6.0f}  ({values[0]:.0f} to {values[-1]:.0f})")
    for strength, rate in loader.items():
        print(f"{f'loader, {workers} workers, {strength}':38} {rate:6.0f}")
    fashion = fashion_milliseconds()
    print("Fashion-MNIST, ms a mini-batch of 32:", ", ".join(f"{s} {ms:.2f}" for s, ms in fashion.items()))
    if options.out is not None:
        result = {
            "made_with": versions(), "files": {"images": IMAGES, "width": 500, "height": 375, "kilobytes": kilobytes},
            "images_per_second_of_one_core": rates, "loader": {"workers": workers, "images_per_second": loader},
            "fashion_ms_a_batch_of_32": fashion,
        }  # fmt: skip
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
