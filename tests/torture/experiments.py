"""Tiny runs of all experiments, and the digest of what they leave."""

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from support.jpegs import jpeg_shards, jpeg_tree

from batchnorm.paper.training.checkpoint import Checkpoint

INDEX = "shards-"  # It spares reading the headers of the shards, and is not written again.
MNIST = "mnist --steps 3 --eval-every 1 --batch-size 20 --threads 1"
TRIAL = (
    "trial support.trials:small_mlp --data support.trials:linear_batches --lr 0.01 --steps 2 --eval-every 1 --seeds 1"
)
INCEPTION = (
    "inception bn-baseline --steps 3 --eval-every 1 --batch-size 4 --size 28 --width 0.0625 --modules 5b "
    "--workers 0 --threads 1 --checkpoint-minutes 1e-9"
)


class Experiment(NamedTuple):
    """A command, and how it starts.

    Arguments:
        arguments: Of the command, without --out.
        ranks: The number of processes.
        killed_at: Start from a run that was killed at this share of its calls. With None start anew.
    """

    arguments: tuple[str, ...]
    ranks: int = 1
    killed_at: float | None = None


def make_experiments(folder: Path) -> dict[str, Experiment]:
    """Write small images into `folder` and return the experiments on them."""
    mnist = (*MNIST.split(), "--data", str(_idx_files(folder / "mnist")))
    tree = (*INCEPTION.split(), "--data", str(jpeg_tree(folder / "tree", train=2, val=1)))
    shards = (*INCEPTION.split(), "--data", str(jpeg_shards(folder / "shards", train=2, val=1)))
    return {
        "mnist": Experiment(mnist),
        "mnist, resumed": Experiment(mnist, killed_at=0.6),
        "trial": Experiment(tuple(TRIAL.split())),
        "trial, resumed": Experiment(tuple(TRIAL.split()), killed_at=0.6),
        "inception": Experiment(tree),
        "inception, resumed": Experiment(tree, killed_at=0.6),
        "inception, two processes": Experiment(shards, ranks=2),
    }


def digest(run: Path) -> str:
    """Return a digest of records, weights and the names of all files. Measured times are left out."""
    found = hashlib.sha256()
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = {name: value for name, value in json.loads(line).items() if name != "waited"}
        found.update(json.dumps(row).encode())
    for path in sorted(path for path in run.iterdir() if not path.name.startswith(INDEX)):
        found.update(path.name.encode())
        if path.suffix == ".pt":
            for part in _bytes(Checkpoint(path).load()):
                found.update(part)
    return found.hexdigest()


def _bytes(value: object) -> Iterator[bytes]:
    if isinstance(value, dict):
        for name, part in value.items():
            yield str(name).encode()
            yield from _bytes(part)
    elif isinstance(value, list):
        for part in value:
            yield from _bytes(part)
    else:
        yield value.numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value).encode()


def _idx_files(folder: Path) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for split, images in (("train", 60), ("t10k", 20)):
        labels = rng.integers(0, 10, images, dtype=np.uint8)
        pixels = rng.integers(0, 256, (images, 28, 28), dtype=np.uint8)
        for name, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            (folder / f"{split}-{name}-ubyte").write_bytes(header + array.tobytes())
    return folder
