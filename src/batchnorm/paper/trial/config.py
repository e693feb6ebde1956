"""The settings of one trial, and their form in `config.json`. Nothing here imports torch or pydantic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from ...algorithm2.choices import Removable
from ..training.bounds import Bounds, Count, Positive

Optimizer = Literal["sgd", "adamw"]


@dataclass(frozen=True)
class TrialConfig:
    """What a caller chooses. All contenders share it."""

    lr: Positive = 0.1
    """Learning rate that you train the network with. BN is tried at 1, 5 and 30 times it, the plain network also at a
    fifth."""
    steps: Count = 500
    """Number of mini-batches that each contender trains on."""
    seeds: Annotated[int, Bounds(1, 100)] = 3
    """Number of seeds of the initial weights and of the order of the mini-batches."""
    eval_every: Count = 25
    """Steps between two measurements on the held-out batches."""
    optimizer: Optimizer = "sgd"
    """The optimizer of all contenders."""
    momentum: Annotated[float, Bounds(0.0, 0.9999)] = 0.9
    """Momentum of sgd."""
    weight_decay: Annotated[float, Bounds(0.0, 1e3)] = 0.0
    """Weight decay of all contenders, but see recipe."""
    decay_every: Annotated[float, Bounds(0.0, 1e12)] = 0.0
    """Steps between two decays of the learning rate by 4 %, for all contenders, but see recipe. 0 keeps it constant."""
    recipe: bool = False
    """Give the network with BN the rest of the paper's recipe (Sec. 4.2.1): a fifth of the weight decay, and a decay of
    the learning rate that is 6 times as fast."""
    remove: tuple[Removable, ...] = ()
    """Layers that inserting BN removes (Sec. 4.2.1)."""


@dataclass(frozen=True, kw_only=True)
class TrialSettings(TrialConfig):
    """What `config.json` holds: the choices, where network and data are from, and what was found there.

    Arguments:
        network, data, eval_data, loss, metric: MODULE:FACTORY, or a name for the reader in a run from Python.
        subject: digest of the batches and of the initial weights of the first seed.
        score: the name of what is measured on the held-out batches.
        higher: True if a higher score is better.
        arms: "plain" and "bn", or "plain" alone if BN has no place in the network.
        why_alone: why BN has no place, or "".
        one_start: True if the factory gives the same weights at every seed.
    """

    network: str
    data: str
    eval_data: str | None
    loss: str | None
    metric: str | None
    subject: str
    score: str
    higher: bool
    arms: tuple[Literal["plain", "bn"], ...]
    why_alone: str
    one_start: bool
