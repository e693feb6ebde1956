"""Every setting of a run is chosen once, and none is a placeholder."""

from dataclasses import replace

import pytest

import batchnorm as bn
from batchnorm.paper.inception import jobs
from batchnorm.paper.inception.config import InceptionConfig
from batchnorm.paper.inception.settled import Settled, settled
from batchnorm.paper.inception.variants import BN_X5

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
