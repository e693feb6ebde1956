"""The recipe of Sec. 4.2.1, on our variants and on configs of other types."""

import re
from collections import defaultdict
from dataclasses import dataclass
from types import MappingProxyType

import pytest
from support.paths import ROOT

import batchnorm as bn
from batchnorm.paper.inception.recipe import accelerate
from batchnorm.paper.inception.variants import BN_BASELINE


@dataclass(frozen=True)
class Mine:
    learning_rate: float = 0.1
    weight_decay: float = 1e-4
    epochs: int = 90


def test_the_recipe_changes_all_that_the_paper_names_and_nothing_else():
    faster = accelerate(BN_BASELINE, times=5)
    changed = {name for name, value in vars(faster).items() if value != getattr(BN_BASELINE, name)}
    assert changed == {"lr", "dropout", "weight_decay", "decay_every", "lrn", "within_shard_shuffle", "distortion"}
    assert faster.lr == pytest.approx(0.0075)
    assert faster.weight_decay == pytest.approx(4e-5)
    assert faster.decay_every == pytest.approx(8 / 6)
    assert (faster.dropout, faster.lrn, faster.within_shard_shuffle, faster.distortion) == (0, False, True, "weak")


def test_a_config_of_other_fields_gets_what_applies():
    config = Mine()
    assert accelerate(config, times=30) == Mine(learning_rate=3.0, weight_decay=2e-5)
    assert config == Mine()


def test_a_mapping_comes_back_as_one():
    config = {"lr": 0.1, "dropout": 0.5, "distortion": "none", "model": "mine"}
    assert accelerate(config) == {"lr": 0.5, "dropout": 0.0, "distortion": "none", "model": "mine"}
    assert config["lr"] == 0.1


@pytest.mark.parametrize(
    "config", [defaultdict(int, lr=0.1, dropout=0.5), MappingProxyType({"lr": 0.1, "dropout": 0.5})]
)
def test_any_mapping_keeps_its_type(config):
    faster = accelerate(config)
    assert type(faster) is type(config)
    assert faster == {"lr": 0.5, "dropout": 0.0}
    assert config["lr"] == 0.1


@pytest.mark.parametrize(
    ("config", "times", "message"),
    [
        ({"dropout": 0.5}, 5, "wants a config with a setting named lr or learning_rate; this one has dropout"),
        ({}, 5, "this one has none"),
        (Mine, 5, "takes a dataclass instance or a mapping of settings; got type"),
        ([0.1], 5, "got list"),
        ({"lr": 0.1}, 0, "times must be a positive factor on the learning rate; got 0"),
        ({"lr": 0.1}, float("nan"), "times must be a positive factor"),
        ({"lr": 0.1}, float("inf"), "times must be a positive factor"),
        ({"lr": "0.1"}, 5, "lr must be a number; got '0.1'"),
        ({"lr": 0.1, "weight_decay": None}, 5, "weight_decay must be a number; got None"),
    ],
)
def test_what_is_no_config_is_an_error(config, times, message):
    with pytest.raises(bn.BatchNormError, match=message):
        accelerate(config, times)


def test_the_example_in_the_docs_prints_what_it_says(capsys):
    page = (ROOT / "docs" / "inception.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(code, "docs/inception.md", "exec"), {})
    assert capsys.readouterr().out == code.splitlines()[-1].removeprefix("# ") + "\n"
