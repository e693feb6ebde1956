"""What decides the numbers of one run of Sec. 4.2, beside the variant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from ...errors import BatchNormError
from ..training.settings import check_settings
from .network import MODULES, SMALL, Inception
from .variants import DECAY_EVERY, INCEPTION, Variant

# For Fashion-MNIST: the plain network's best in the sweep of records/inception-fashion; and 16 decays in the 1.6 epochs
# of the default run, 96 with the recipe.
FASHION_LR = 0.04
FASHION_DECAY_EVERY = 0.1


@dataclass(frozen=True)
class InceptionConfig:
    """What decides the numbers of one run, whatever the variant; None is chosen to suit the data."""

    data: str = ""
    """Folder with train and val, as class folders or as WebDataset shards; or fashion, for Fashion-MNIST."""
    steps: int | None = None
    """Mini-batches to train on. By default the paper's: 31 million, or 6 million with the recipe; for fashion 3,000."""
    lr: float | None = None
    """Learning rate of the plain Inception; the variants' stand to it as in the paper. 0.0015, or 0.04 for fashion."""
    decay_every: float | None = None
    """Epochs between two decays of that rate by 4 %, a sixth of it with the recipe: 8, or 0.1 for fashion."""
    batch_size: int = 32
    """Images a mini-batch of each process."""
    seed: int = 1
    """Of the initial weights, the order of the images and their distortions."""
    eval_every: int | None = None
    """Steps between two measurements on the validation images; by default a fiftieth of the steps."""
    size: int | None = None
    """Side of the images that the network sees: 224, or 28 for fashion."""
    width: float | None = None
    """Factor on every width of Fig. 5: 1, or 1/8 for fashion."""
    modules: tuple[str, ...] | None = None
    """Which modules of Fig. 5: all, or 3c 4a 4e 5b for fashion."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the arithmetic; bfloat16 is by autocast, the weights stay float32."""
    channels_last: bool = True
    """Memory format of the images and maps; see records/inception-speed for what it gives."""
    compile: bool = False
    """Pass the network through torch.compile."""
    workers: int | None = None
    """Processes that read images, for each process that trains; by default one a core, none for fashion."""
    threads: int | None = None
    """CPU threads of torch; by default one a core, one process under torchrun sharing them with the others."""
    checkpoint_minutes: float = 5.0
    """Between two checkpoints: what a kill can lose."""
    max_damaged: int = 100
    """Images that can't be read and are passed over before the run ends with an error."""


@dataclass(frozen=True)
class Settled(InceptionConfig):
    """The settings of one run with everything chosen; `settled` makes them."""

    steps: int = 0
    lr: float = 0.0
    decay_every: float = 0.0
    eval_every: int = 0
    size: int = 0
    width: float = 0.0
    modules: tuple[str, ...] = ()

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format


def settled(config: InceptionConfig, variant: Variant) -> Settled:
    """The settings with everything chosen.

    Raises:
        BatchNormError: the first setting that can't be run.
    """
    if not config.data:
        raise BatchNormError("name the images: --data FOLDER, or --data fashion for Fashion-MNIST")
    small = config.data == "fashion"
    steps = config.steps if config.steps is not None else 3_000 if small else variant.steps
    chosen = {
        "steps": steps,
        "lr": FASHION_LR if small else INCEPTION.lr,
        "decay_every": FASHION_DECAY_EVERY if small else DECAY_EVERY,
        "eval_every": max(1, steps // 50),
        "size": 28 if small else 224,
        "width": 1 / 8 if small else 1.0,
        "modules": SMALL if small else MODULES,
    }
    given = {name: value for name, value in vars(config).items() if value is not None}
    chosen = Settled(**{**chosen, **given})
    smallest = {
        "steps": 1, "eval_every": 1, "batch_size": 2, "seed": 0, "size": 8, "max_damaged": 0,
        "workers": 0, "threads": 1}  # fmt: skip
    check_settings(chosen, smallest, ("lr", "decay_every", "width", "checkpoint_minutes"))
    with torch.device("meta"):  # its own errors, without its memory
        Inception(size=chosen.size, width=chosen.width, modules=chosen.modules)
    return chosen
