"""The settings of one run of Sec. 4.2, beside the variant. Nothing here imports torch or pydantic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from ..training.bounds import Bounds, Count, Positive, Seed, Threads, Workers

# A Literal, so that the command's help lists the names. A test compares it with the variants.
VariantName = Literal[
    "inception", "bn-baseline", "bn-x5", "bn-x30", "bn-x5-sigmoid", "inception-x5", "inception-sigmoid", "ensemble-1",
    "ensemble-2", "ensemble-3", "ensemble-4", "ensemble-5", "ensemble-6", "only-rate", "only-no-dropout", "only-l2",
    "only-decay", "only-no-lrn", "only-shuffling", "only-distortions", "keeps-rate", "keeps-dropout", "keeps-l2",
    "keeps-decay", "keeps-lrn", "keeps-shuffling", "keeps-distortions", "all", "ensemble", "recipe",
]  # fmt: skip

# Types of the settings that `settled` chooses, if they are None.
DecayEvery = Annotated[float, Bounds(1e-6, 1e9)]
Size = Annotated[int, Bounds(8, 2048)]
Width = Annotated[float, Bounds(1e-3, 16.0)]


@dataclass(frozen=True)
class InceptionConfig:
    """Everything that decides the numbers of one run, beside the variant. `settled` replaces None to suit the data."""

    data: str = ""
    """Folder with train and val, as class folders or as WebDataset shards; or fashion or cifar10."""
    steps: Count | None = None
    """Number of mini-batches. By default the paper's: 31 million, or 6 million with the recipe; fashion 3,000, cifar10
    12,000."""
    lr: Positive | None = None
    """Learning rate of the plain Inception: 0.0015; fashion and cifar10 0.04. The variants keep their ratios to it."""
    decay_every: DecayEvery | None = None
    """Epochs between two decays of the rate by 4 %: 8; fashion 0.1, cifar10 0.48. The recipe divides it by 6."""
    batch_size: Annotated[int, Bounds(2, 10**6)] = 32
    """Number of images in the mini-batch of one process."""
    seed: Seed = 1
    """Seed of the initial weights, of the order of the images and of their distortions."""
    eval_every: Count | None = None
    """Steps between two measurements on the validation images. By default a fiftieth of the steps."""
    size: Size | None = None
    """Side of the network's input images, in pixels: 224; fashion 28, cifar10 32."""
    width: Width | None = None
    """Factor on every width of Fig. 5: 1; fashion and cifar10 1/8."""
    modules: tuple[str, ...] | None = None
    """Modules of Fig. 5: all; fashion and cifar10 3c 4a 4e 5b."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the arithmetic. bfloat16 uses autocast; the weights stay float32."""
    channels_last: bool = True
    """Store images and feature maps with the channels last."""
    compile: bool = False
    """Pass the network through torch.compile."""
    workers: Workers | None = None
    """Processes that read images, for each process that trains. One per core by default; named data needs none."""
    threads: Threads | None = None
    """CPU threads of torch. By default one per core; under torchrun the processes of a machine share its cores."""
    checkpoint_minutes: Annotated[float, Bounds(1e-9, 1e9)] = 5.0
    """Minutes between two checkpoints. A kill loses at most this much work."""
    max_damaged: Annotated[int, Bounds(0, 10**12)] = 100
    """Number of unreadable images to skip. One more ends the run with an error."""
