"""The readers of files that others made. Whatever a file holds, each returns, or raises an error of the project."""

import json
import tarfile
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import torch
from torch import nn

from batchnorm.cli.weights import load_weights
from batchnorm.errors import BatchNormError, Failure
from batchnorm.paper.images import shards
from batchnorm.paper.images.damage import DamagedImage
from batchnorm.paper.images.folders import FolderImages
from batchnorm.paper.images.shards import ShardImages, Stamp
from batchnorm.paper.inception.jobs import resumed_job
from batchnorm.paper.inception.records import EvaluationFields, TrainingFields, TrainingHeader
from batchnorm.paper.inception.trainer import Trainer
from batchnorm.paper.mnist.config import MnistConfig
from batchnorm.paper.mnist.data import IDX_NAMES, load_mnist
from batchnorm.paper.mnist.records import ARMS, ArmFields, SweepFields, grid_means, series
from batchnorm.paper.training.checkpoint import Checkpoint, load_tensors
from batchnorm.paper.training.rows import read_rows
from batchnorm.paper.training.run import Run
from batchnorm.paper.training.settings import saved_settings
from batchnorm.paper.trial.experiment import ContenderTraining
from batchnorm.paper.trial.prepare import reopen
from batchnorm.paper.trial.records import TrialFields, contenders, curves

Read = Callable[[bytes], None]
STAMP = Stamp("shard.tar", "2048", "0")
PIXEL = b"P6 1 1 255\n\0\0\0"
CLASSES = ["cat", "dog"]


class Reader(NamedTuple):
    """A function that prepares a folder and returns the reader, and how its bytes are mutated."""

    prepare: Callable[[Path], Read]
    form: str  # a name in `fuzz.mutations`
    most: int = 4096  # bytes of an input


def is_read(read: Read, content: bytes) -> bool:
    """Return True if the content is read, False if the project refuses it. Any other error is a find."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the command prints a warning in one line
            read(content)
    except (Failure, DamagedImage):
        return False
    return True


def idx_bytes(*shape: int) -> bytes:
    """Return an IDX file of zeros."""
    sizes = b"".join(size.to_bytes(4, "big") for size in shape)
    return bytes((0, 0, 8, len(shape))) + sizes + bytes(torch.Size(shape).numel())


def shard_bytes(*members: tuple[str, bytes]) -> bytes:
    """Return a tar file, with as few zeros at its end as are accepted."""
    file = BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, BytesIO(content))
        end = tar.offset
    return file.getvalue()[: end + 512]


def tiny_network() -> nn.Sequential:
    """Return a network whose weights are a few bytes."""
    return nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2))


def tiny_trainer() -> Trainer:
    """Return a trainer of `tiny_network` that can be restored, and nothing else."""
    trainer = Trainer.__new__(Trainer)
    trainer.__dict__.update(
        model=(model := tiny_network()),
        optimizer=torch.optim.SGD(model.parameters(), 0.1, 0.9),
        batches=SimpleNamespace(source=SimpleNamespace(classes=CLASSES, channels=1)),
        processes=SimpleNamespace(world_size=1, rank=1),
    )
    return trainer


def tiny_contender() -> ContenderTraining:
    """Return a contender of `tiny_network` that can be restored, and nothing else."""
    training = ContenderTraining.__new__(ContenderTraining)
    training.__dict__.update(model=(model := tiny_network()), optimizer=torch.optim.SGD(model.parameters(), 0.1, 0.9))
    return training


def mnist_data(folder: Path) -> Read:
    """Read an IDX file as the training images of MNIST, beside whole other files."""
    shapes = {"train_labels": (2,), "test_images": (1, 28, 28), "test_labels": (1,)}
    for name, shape in shapes.items():
        (folder / IDX_NAMES[name]).write_bytes(idx_bytes(*shape))

    def read(content: bytes) -> None:
        (folder / IDX_NAMES["train_images"]).write_bytes(content)
        load_mnist(folder)

    return read


def _read_images(images: ShardImages) -> None:
    refused = None
    for number in range(min(len(images), 4)):
        json.dumps([images.name(number), images.label(number)])
        try:
            images.read(number)
        except DamagedImage as error:
            refused = error
    if refused is not None:
        raise refused


def shard(folder: Path) -> Read:
    """Read the headers of a shard, then its first images."""
    file = folder / "train-0.tar"

    def read(content: bytes) -> None:
        file.write_bytes(content)
        _read_images(ShardImages([file], None, every_class=True))

    return read


def label(folder: Path) -> Read:
    """Read a shard with one image, whose label is the content."""
    file = folder / "train-0.tar"

    def read(content: bytes) -> None:
        file.write_bytes(shard_bytes(("0.ppm", PIXEL), ("0.cls", content)))
        ShardImages([file], None, every_class=False)

    return read


def shard_index(folder: Path) -> Read:
    """Read the index of a shard, then the images at the places that it names. A damaged index is read anew."""
    file, index = folder / "train-0.tar", folder / "shards-train.npz"
    file.write_bytes(shard_bytes(("0.ppm", PIXEL), ("0.cls", b"0")))

    def read(content: bytes) -> None:
        index.write_bytes(content)
        with mock.patch.object(shards, "_stamp", return_value=STAMP):  # no file of the corpus knows the folder
            images = ShardImages([file], index, every_class=False)
        with mock.patch.object(images, "_path", return_value=str(file)):
            _read_images(images)

    return read


def image(folder: Path) -> Read:
    """Read an image of a class folder."""
    file = folder / "class" / "image.jpg"
    file.parent.mkdir(exist_ok=True)

    def read(content: bytes) -> None:
        file.write_bytes(content)
        FolderImages(folder).read(0)

    return read


def mnist_settings(folder: Path) -> Read:
    """Read config.json of `batchnorm mnist`."""

    def read(content: bytes) -> None:
        (folder / "config.json").write_bytes(content)
        run, experiment, saved = Run.open(folder)
        saved_settings(MnistConfig, saved, run.config, experiment)

    return read


def inception_settings(folder: Path) -> Read:
    """Read config.json of `batchnorm inception`. The network is built on the meta device."""

    def read(content: bytes) -> None:
        (folder / "config.json").write_bytes(content)
        resumed_job(folder)

    return read


def trial_settings(folder: Path) -> Read:
    """Read config.json of `batchnorm trial`."""

    def read(content: bytes) -> None:
        (folder / "config.json").write_bytes(content)
        reopen(folder)

    return read


def rows(folder: Path) -> Read:
    """Read rows of every kind from one file. It is refused if it has rows of no kind."""
    file = folder / "metrics.jsonl"

    def read(content: bytes) -> None:
        file.write_bytes(content)
        refused = []
        for kind in (ArmFields, SweepFields, TrainingFields, EvaluationFields, TrialFields):
            try:
                found = read_rows(file, kind)
            except BatchNormError as error:
                refused.append(error)
                continue
            json.dumps(found)
            if issubclass(kind, ArmFields):
                series(found, "bn", "loss")
            if kind is SweepFields:
                [grid_means(found, arm) for arm in ARMS]
            if kind is TrialFields:
                [curves(found, contender) for contender in contenders(("plain", "bn"), 0.1)]
        if len(refused) == 5:
            raise refused[0]

    return read


def mnist_checkpoint(folder: Path) -> Read:
    """Read a checkpoint of `batchnorm mnist`."""
    file, network = folder / "checkpoint-bn.pt", tiny_network()

    def read(content: bytes) -> None:
        file.write_bytes(content)
        state = Checkpoint(file, digest="0123456789abcdef").load()
        load_tensors(network, (state or {}).get("model"))

    return read


def inception_checkpoint(folder: Path) -> Read:
    """Read a checkpoint of `batchnorm inception`, with its momentum."""
    file, trainer = folder / "checkpoint-training.pt", tiny_trainer()

    def read(content: bytes) -> None:
        file.write_bytes(content)
        state = Checkpoint(file, header=TrainingHeader).load()
        trainer.restore(state or {})

    return read


def trial_checkpoint(folder: Path) -> Read:
    """Read a checkpoint of `batchnorm trial`, with its momentum."""
    file, training = folder / "checkpoint-bn-x1-seed-1.pt", tiny_contender()

    def read(content: bytes) -> None:
        file.write_bytes(content)
        training.restore(Checkpoint(file).load() or {})

    return read


def weights(suffix: str) -> Callable[[Path], Read]:
    """Return the reader of `--weights`, by the suffix of the file."""

    def prepare(folder: Path) -> Read:
        """Read weights for the commands."""
        file, network = folder / f"weights{suffix}", tiny_network()

        def read(content: bytes) -> None:
            file.write_bytes(content)
            load_weights(network, file)

        return read

    return prepare


READERS = {
    "idx": Reader(mnist_data, "plain"),
    "idx-gzip": Reader(mnist_data, "gzip"),
    "shard": Reader(shard, "tar", 8192),
    "shard-index": Reader(shard_index, "zip"),
    "label": Reader(label, "plain", 100),
    "image": Reader(image, "image"),
    "mnist-settings": Reader(mnist_settings, "json"),
    "inception-settings": Reader(inception_settings, "json"),
    "trial-settings": Reader(trial_settings, "json"),
    "rows": Reader(rows, "json"),
    "mnist-checkpoint": Reader(mnist_checkpoint, "zip", 8192),
    "inception-checkpoint": Reader(inception_checkpoint, "zip", 8192),
    "trial-checkpoint": Reader(trial_checkpoint, "zip", 8192),
    "weights-pt": Reader(weights(".pt"), "zip", 8192),
    "weights-safetensors": Reader(weights(".safetensors"), "safetensors"),
}
