"""The small networks of small images: a row for each data set, and for any folder."""

from dataclasses import replace

import pytest

import batchnorm as bn
from batchnorm.paper.inception.config import InceptionConfig
from batchnorm.paper.inception.network import Inception
from batchnorm.paper.inception.presets import PRESETS, with_small_network
from batchnorm.paper.inception.settled import settled
from batchnorm.paper.inception.variants import BN_X5, INCEPTION, learning_rate, rescaled

SMALL = ("3c", "4a", "4e", "5b")


@pytest.mark.parametrize(
    ("data", "expected"),
    [("fashion", (28, 1 / 8, SMALL, 0.04, 0.1, 3000, 60)), ("cifar10", (32, 1 / 8, SMALL, 0.04, 0.48, 12_000, 240))],
)
def test_named_images_have_a_small_network(data, expected):
    chosen = settled(InceptionConfig(data), BN_X5)
    names = ("size", "width", "modules", "lr", "decay_every", "steps", "eval_every")
    assert tuple(getattr(chosen, name) for name in names) == expected


@pytest.mark.parametrize(("data", "images"), [("fashion", 60_000), ("cifar10", 50_000)])
def test_the_rate_decays_16_times_in_the_default_run(data, images):
    chosen = settled(InceptionConfig(data), INCEPTION)
    plain = rescaled(INCEPTION, chosen.lr, chosen.decay_every)
    end = learning_rate(plain, chosen.steps * chosen.batch_size / images)
    assert end == pytest.approx(chosen.lr * 0.96**16)


def test_a_folder_of_small_images_has_the_network_of_cifar10():
    small = settled(with_small_network(InceptionConfig("/photos")), BN_X5)
    assert replace(small, data="cifar10") == settled(InceptionConfig("cifar10"), BN_X5)


def test_a_given_setting_is_kept_beside_small():
    given = InceptionConfig("/photos", size=48, steps=9)
    assert with_small_network(given) == replace(given, width=1 / 8, modules=SMALL, lr=0.04, decay_every=0.48)


@pytest.mark.parametrize("data", PRESETS)
def test_small_is_for_a_folder(data):
    message = f"--data {data} has a small network already; --small is for a folder"
    with pytest.raises(bn.BatchNormError, match=message):
        with_small_network(InceptionConfig(data))


@pytest.mark.parametrize(("size", "channels", "parameters"), [(28, 1, 74_698), (32, 3, 75_130)])
def test_the_size_of_the_small_network(size, channels, parameters):
    network = Inception(10, batch_norm=True, channels=channels, size=size, width=1 / 8, modules=SMALL)
    # A color image adds 2 channels x 24 maps x 3 x 3 weights to the stem: 432.
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_the_small_network_has_no_lrn_to_remove():
    networks = [Inception(10, lrn=lrn, channels=3, size=32, width=1 / 8, modules=SMALL) for lrn in (False, True)]
    assert str(networks[0]) == str(networks[1])
