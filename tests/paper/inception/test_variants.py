"""The variants, their ensemble and their learning rates."""

import pytest

from batchnorm.paper.inception.variants import (
    ALONE,
    BN_BASELINE,
    BN_X5,
    BN_X5_SIGMOID,
    BN_X30,
    BY_NAME,
    ENSEMBLE,
    INCEPTION,
    INCEPTION_SIGMOID,
    INCEPTION_X5,
    KEEPS,
    RECIPE,
    learning_rate,
    rescaled,
)


def delta(new, old):
    """Return the settings of `new` that differ from those of `old`."""
    return {name: value for name, value in vars(new).items() if value != getattr(old, name) and name != "name"}


def test_the_variants_are_those_of_section_4_2_2():
    assert delta(BN_BASELINE, INCEPTION) == {"batch_norm": True}
    assert delta(BN_X30, BN_X5) == {"lr": pytest.approx(0.045)}
    assert delta(BN_X5_SIGMOID, BN_X5) == {"activation": "sigmoid"}
    assert delta(INCEPTION_X5, INCEPTION) == {"lr": pytest.approx(0.0075)}
    assert delta(INCEPTION_SIGMOID, INCEPTION) == {"activation": "sigmoid"}
    assert (BN_X5.lr, BN_X5.batch_norm) == (pytest.approx(0.0075), True)
    assert len(BY_NAME) == 27


# The recipe of Sec. 4.2.1, by hand: each part's setting in BN-baseline and in BN-x5.
PARTS = {
    "lr": (0.0015, 0.0075),
    "dropout": (0.4, 0.0),
    "weight_decay": (2e-4, 4e-5),
    "decay_every": (8.0, 8 / 6),
    "lrn": (True, False),
    "within_shard_shuffle": (False, True),
    "distortion": ("strong", "weak"),
}


@pytest.mark.parametrize(
    ("members", "base", "which"), [(ALONE, BN_BASELINE, 1), (KEEPS, BN_X5, 0)], ids=["alone", "keeps"]
)
def test_each_part_of_the_recipe_differs_from_its_base_in_one_field(members, base, which):
    found = [delta(member, base) for member in members]
    assert all(len(change) == 1 for change in found)
    merged = {name: value for change in found for name, value in change.items()}
    assert list(merged) == list(PARTS)
    assert merged == {name: pytest.approx(values[which]) for name, values in PARTS.items()}


def test_the_group_of_the_recipe_has_its_bases_and_the_plain_network():
    assert (INCEPTION, BN_BASELINE, BN_X5, *ALONE, *KEEPS) == RECIPE
    assert len(RECIPE) == 17


def test_the_ensemble_is_six_networks_on_bn_x30():
    allowed = {"init_scale", "dropout", "per_activation"}
    assert len(ENSEMBLE) == 6
    assert all(delta(member, BN_X30) and delta(member, BN_X30).keys() <= allowed for member in ENSEMBLE)
    assert len({tuple(delta(member, BN_X30).items()) for member in ENSEMBLE}) == 6
    assert {member.dropout for member in ENSEMBLE} == {0, 0.05, 0.1}


@pytest.mark.parametrize(
    ("variant", "epoch", "rate"),
    [
        (INCEPTION, 0, 0.0015),
        (INCEPTION, 7.99, 0.0015),
        (INCEPTION, 8, 0.0015 * 0.96),
        (INCEPTION, 80, 0.0015 * 0.96**10),
        (BN_BASELINE, 16, 0.0015 * 0.96**2),
        (BN_X5, 4, 0.0075 * 0.96**3),  # A sixth of 8 epochs: 4 epochs are exactly three decays.
        (BN_X5, 3.99, 0.0075 * 0.96**2),
        (BN_X30, 8, 0.045 * 0.96**6),
        (BN_X5_SIGMOID, 8, 0.0075 * 0.96**6),
        (INCEPTION_X5, 8, 0.0075 * 0.96),
        (INCEPTION_SIGMOID, 8, 0.0015 * 0.96),
        (ENSEMBLE[0], 8, 0.045 * 0.96**6),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_the_learning_rate_of_each_variant(variant, epoch, rate):
    assert learning_rate(variant, epoch) == pytest.approx(rate, rel=1e-12)


def test_rescaling_keeps_the_ratios_between_variants():
    small = rescaled(BN_X30, lr=0.01, decay_every=0.6)
    assert (small.lr, small.decay_every) == (pytest.approx(0.3), pytest.approx(0.1))
    assert rescaled(INCEPTION, 0.01, 0.6).lr == pytest.approx(0.01)
