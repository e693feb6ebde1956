"""Sec. 4.2.1 to 4.2.3: the networks of the comparison and of the ensemble, each a delta on the one before."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...functional import Activation
from ..images.strength import Strength
from .recipe import accelerate

# What the paper leaves open, and where each value is from.
SGD_MOMENTUM = 0.9  # Going deeper with convolutions (Szegedy et al., 2014), Sec. 6
DECAY = 0.96  # the same: down by 4 % every 8 epochs
DECAY_EVERY = 8.0
DROPOUT = 0.4  # the same, Sec. 5, before the classifier
WEIGHT_DECAY = 2e-4  # GoogLeNet's release for Caffe; neither paper names one
LARGER_WEIGHTS = 1.5  # Sec. 4.2.3 has larger initial weights in the convolutions, and names no factor


@dataclass(frozen=True)
class Variant:
    """What decides a network and its training, beside the data and the number of steps."""

    name: str
    lr: float
    batch_norm: bool = False
    activation: Activation = "relu"
    lrn: bool = True
    dropout: float = DROPOUT
    weight_decay: float = WEIGHT_DECAY
    decay_every: float = DECAY_EVERY  # epochs between two decays by DECAY
    within_shard_shuffle: bool = False
    distortion: Strength = "strong"
    init_scale: float = 1.0
    per_activation: tuple[str, ...] = ()
    steps: int = 31_000_000  # what the plain network needs for its best accuracy (Fig. 3)


INCEPTION = Variant("inception", lr=0.0015)

# Sec. 4.2.2
BN_BASELINE = replace(INCEPTION, name="bn-baseline", batch_norm=True)
BN_X5 = replace(accelerate(BN_BASELINE, times=5), name="bn-x5", steps=6_000_000)  # BN-x30's best is at 6 million
BN_X30 = replace(BN_X5, name="bn-x30", lr=30 * INCEPTION.lr)
BN_X5_SIGMOID = replace(BN_X5, name="bn-x5-sigmoid", activation="sigmoid")

# What the paper tried without BN: the higher rate, and the sigmoid.
INCEPTION_X5 = replace(INCEPTION, name="inception-x5", lr=5 * INCEPTION.lr)
INCEPTION_SIGMOID = replace(INCEPTION, name="inception-sigmoid", activation="sigmoid")

VARIANTS = (INCEPTION, BN_BASELINE, BN_X5, BN_X30, BN_X5_SIGMOID, INCEPTION_X5, INCEPTION_SIGMOID)

# Sec. 4.2.3: six networks on BN-x30, changed by "some of" three things; which by which, the paper does not say.
LARGER = replace(BN_X30, init_scale=LARGER_WEIGHTS)
ENSEMBLE = (
    replace(LARGER, name="ensemble-1"),
    replace(BN_X30, name="ensemble-2", dropout=0.05),
    replace(BN_X30, name="ensemble-3", dropout=0.10),
    replace(BN_X30, name="ensemble-4", per_activation=("5b",)),
    replace(LARGER, name="ensemble-5", dropout=0.05, per_activation=("5b",)),
    replace(LARGER, name="ensemble-6", dropout=0.10, per_activation=("5b",)),
)

BY_NAME = {variant.name: variant for variant in VARIANTS + ENSEMBLE}


def rescaled(variant: Variant, lr: float, decay_every: float) -> Variant:
    """`variant` as it stands to an Inception with this learning rate and decay, in place of the paper's."""
    return replace(
        variant,
        lr=variant.lr * (lr / INCEPTION.lr),
        decay_every=variant.decay_every * (decay_every / INCEPTION.decay_every),
    )


def learning_rate(variant: Variant, epoch: float) -> float:
    """The rate after `epoch` epochs (of the whole training set): down by 4 % at once, every `decay_every`."""
    return variant.lr * DECAY ** int(epoch / variant.decay_every + 1e-9)  # 4 / (8 / 6) is a hair under 3
