"""Every setting of a run is chosen once, and none is a placeholder."""

from dataclasses import replace

import pytest

import batchnorm as bn
from batchnorm.paper.inception import jobs
from batchnorm.paper.inception.config import InceptionConfig
from batchnorm.paper.inception.settled import Settled, settled
from batchnorm.paper.inception.variants import BN_X5, INCEPTION

CHOSEN = ("steps", "lr", "decay_every", "eval_every", "size", "width", "modules")


@pytest.mark.parametrize("name", CHOSEN)
def test_a_settled_config_has_no_placeholders(name):
    values = vars(settled(InceptionConfig("fashion"), BN_X5))
    assert Settled(**values) == settled(InceptionConfig("fashion"), BN_X5)
    del values[name]
    with pytest.raises(TypeError, match=f"missing 1 required keyword-only argument: '{name}'"):
        Settled(**values)


@pytest.mark.parametrize("name", CHOSEN)
def test_a_given_value_is_kept(name):
    given = {"modules": ("3c",)}.get(name, 9)
    assert getattr(settled(replace(InceptionConfig("fashion"), **{name: given}), BN_X5), name) == given


def test_each_variant_is_settled_once(monkeypatch):
    seen = []

    def fail(_data):
        raise bn.BatchNormError("no images")

    monkeypatch.setattr(jobs, "settled", lambda config, variant: seen.append(variant.name) or settled(config, variant))
    monkeypatch.setattr(jobs, "open_both", fail)
    with pytest.raises(bn.BatchNormError, match="no images"):
        jobs.new_jobs("ensemble", InceptionConfig("fashion"), None)
    assert seen == [f"ensemble-{number}" for number in range(1, 7)]


def test_the_defaults_for_other_images_are_the_papers():
    large = settled(InceptionConfig("/imagenet"), BN_X5)
    assert (large.size, large.width, large.steps, len(large.modules)) == (224, 1.0, 6_000_000, 10)
    assert settled(InceptionConfig("/imagenet"), INCEPTION).steps == 31_000_000


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (InceptionConfig(), "name the images: --data FOLDER, or one of fashion, cifar10"),
        (InceptionConfig("fashion", steps=0), "--steps must be an integer from 1 to 1,000,000,000,000; got 0"),
        (InceptionConfig("fashion", batch_size=1), "--batch-size must be an integer from 2 to 1,000,000; got 1"),
        (
            InceptionConfig("fashion", lr=float("inf")),
            r"--lr must be a number from 1e-30 to 1e\+30; got Infinity",
        ),
        (
            InceptionConfig("fashion", decay_every=-1),
            r"--decay-every must be a number from 1e-06 to 1e\+09; got -1",
        ),
        (InceptionConfig("fashion", workers=-1), "--workers must be an integer from 0 to 1,024; got -1"),
        (InceptionConfig("fashion", threads=0), "--threads must be an integer from 1 to 1,024; got 0"),
        (InceptionConfig("fashion", modules=("9z",)), "modules: '9z' is not one of 3a, 3b"),
        (InceptionConfig("fashion", width=1e-3), r"width 0\.001 leaves a layer"),
    ],
)
def test_a_setting_out_of_range_is_named(config, message):
    with pytest.raises(bn.BatchNormError, match=message):
        settled(config, BN_X5)
