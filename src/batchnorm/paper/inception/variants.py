"""The variants of Sec. 4.2: the comparison, the ensemble, and the parts of the recipe, each a change of another one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...kernels.activation import Activation
from ..images.strength import Strength
from .recipe import accelerate

# Values that the paper does not state, and their sources. GoogLeNet is Going deeper with convolutions (Szegedy et al.,
# 2014).
SGD_MOMENTUM = 0.9  # GoogLeNet, Sec. 6
DECAY = 0.96  # GoogLeNet, Sec. 6: down by 4 % every 8 epochs
DECAY_EVERY = 8.0
DROPOUT = 0.4  # GoogLeNet, Sec. 5, before the classifier
WEIGHT_DECAY = 2e-4  # GoogLeNet's release for Caffe. Neither paper states one.
LARGER_WEIGHTS = 1.5  # Ours. Sec. 4.2.3 has larger initial weights in the convolutions, without a factor.


@dataclass(frozen=True)
class Variant:
    """The settings of a network and its training that the paper varies."""

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
    steps: int = 31_000_000  # to the plain network's best accuracy (Fig. 3)


INCEPTION = Variant("inception", lr=0.0015)

# Sec. 4.2.2
BN_BASELINE = replace(INCEPTION, name="bn-baseline", batch_norm=True)
BN_X5 = replace(accelerate(BN_BASELINE, times=5), name="bn-x5", steps=6_000_000)  # BN-x30's best is at 6 million
BN_X30 = replace(BN_X5, name="bn-x30", lr=30 * INCEPTION.lr)
BN_X5_SIGMOID = replace(BN_X5, name="bn-x5-sigmoid", activation="sigmoid")

# The paper's trials without BN: the higher learning rate, and the sigmoid.
INCEPTION_X5 = replace(INCEPTION, name="inception-x5", lr=5 * INCEPTION.lr)
INCEPTION_SIGMOID = replace(INCEPTION, name="inception-sigmoid", activation="sigmoid")

VARIANTS = (INCEPTION, BN_BASELINE, BN_X5, BN_X30, BN_X5_SIGMOID, INCEPTION_X5, INCEPTION_SIGMOID)

# Sec. 4.2.3: six networks based on BN-x30, each with "some of" three changes. The paper does not say which has which.
LARGER = replace(BN_X30, init_scale=LARGER_WEIGHTS)
ENSEMBLE = (
    replace(LARGER, name="ensemble-1"),
    replace(BN_X30, name="ensemble-2", dropout=0.05),
    replace(BN_X30, name="ensemble-3", dropout=0.10),
    replace(BN_X30, name="ensemble-4", per_activation=("5b",)),
    replace(LARGER, name="ensemble-5", dropout=0.05, per_activation=("5b",)),
    replace(LARGER, name="ensemble-6", dropout=0.10, per_activation=("5b",)),
)

# What each part of the recipe gives, which the paper does not tell: each part alone, then all parts but
# one, where BN-x5 keeps the setting of BN-baseline.
ALONE = (
    replace(BN_BASELINE, name="only-rate", lr=BN_X5.lr),
    replace(BN_BASELINE, name="only-no-dropout", dropout=BN_X5.dropout),
    replace(BN_BASELINE, name="only-l2", weight_decay=BN_X5.weight_decay),
    replace(BN_BASELINE, name="only-decay", decay_every=BN_X5.decay_every),
    replace(BN_BASELINE, name="only-no-lrn", lrn=BN_X5.lrn),
    replace(BN_BASELINE, name="only-shuffling", within_shard_shuffle=BN_X5.within_shard_shuffle),
    replace(BN_BASELINE, name="only-distortions", distortion=BN_X5.distortion),
)
KEEPS = (
    replace(BN_X5, name="keeps-rate", lr=BN_BASELINE.lr),
    replace(BN_X5, name="keeps-dropout", dropout=BN_BASELINE.dropout),
    replace(BN_X5, name="keeps-l2", weight_decay=BN_BASELINE.weight_decay),
    replace(BN_X5, name="keeps-decay", decay_every=BN_BASELINE.decay_every),
    replace(BN_X5, name="keeps-lrn", lrn=BN_BASELINE.lrn),
    replace(BN_X5, name="keeps-shuffling", within_shard_shuffle=BN_BASELINE.within_shard_shuffle),
    replace(BN_X5, name="keeps-distortions", distortion=BN_BASELINE.distortion),
)
RECIPE = (INCEPTION, BN_BASELINE, BN_X5, *ALONE, *KEEPS)

BY_NAME = {variant.name: variant for variant in VARIANTS + ENSEMBLE + ALONE + KEEPS}


def rescaled(variant: Variant, lr: float, decay_every: float) -> Variant:
    """Return the variant for a plain Inception with this learning rate and decay. Keep the paper's ratios to it."""
    return replace(
        variant,
        lr=variant.lr * (lr / INCEPTION.lr),
        decay_every=variant.decay_every * (decay_every / INCEPTION.decay_every),
    )


def learning_rate(variant: Variant, epoch: float) -> float:
    """Return the learning rate after `epoch` epochs of the whole training set: 4 % less after each `decay_every`."""
    return decayed(variant.lr, epoch, variant.decay_every)


def decayed(lr: float, passed: float, every: float) -> float:
    """Return the learning rate: 4 % less each time that `every` has passed."""
    return lr * DECAY ** int(passed / every + 1e-9)  # 4 / (8 / 6) rounds to just below 3.
