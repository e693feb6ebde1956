"""The sweep trains a grid, and resumes with what is missing."""

from dataclasses import replace
from threading import Event

import pytest

import batchnorm as bn
from batchnorm.paper.mnist import sweep
from batchnorm.paper.mnist.config import MnistConfig, config_to_json
from batchnorm.paper.mnist.data import load_mnist
from batchnorm.paper.mnist.records import grid_means
from batchnorm.paper.training.run import Run


def no_report(row):
    """Show no progress."""


def test_sweep_covers_the_grid_and_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "LRS", (0.1, 1.0))
    monkeypatch.setattr(sweep, "STDS", (0.1,))
    monkeypatch.setattr(sweep, "SEEDS", 2)
    base, data = MnistConfig(steps=5, threads=1), load_mnist()
    run = Run.create(tmp_path / "sweep", "sweep", config_to_json(base))
    rows = sweep.run_sweep(base, data, run, no_report, Event())
    assert [(r["lr"], r["seed"], r["arm"]) for r in rows] == [
        (lr, seed, arm) for lr in (0.1, 1.0) for seed in (1, 2) for arm in ("bn", "plain")
    ]
    assert {row["step"] for row in rows} == {5}
    run.replace_rows(rows[:3])
    trained = []
    assert sweep.run_sweep(base, data, run, trained.append, Event()) == rows
    assert len(trained) == 5
    wanted = sum(row["test_accuracy"] for row in rows if row["lr"] == 0.1 and row["arm"] == "bn") / 2
    assert grid_means(rows, "bn")[0.1, 0.1] == pytest.approx(wanted)


def test_the_whole_sweep_is_210_trainings_from_the_first_seed():
    found = sweep.settings(MnistConfig(seed=5))
    assert len(found) == len(set(found)) == 210
    assert {setting.seed for setting in found} == {5, 6, 7}


@pytest.mark.parametrize("change", [{"lr": 1.0}, {"std": 1.0}, {"eval_every": 5}])
def test_settings_that_a_sweep_chooses_itself_are_refused(change):
    (name,) = change
    sweep.check_sweep(MnistConfig(steps=5))
    with pytest.raises(bn.BatchNormError, match=f"--sweep chooses --{name.replace('_', '-')} itself"):
        sweep.check_sweep(replace(MnistConfig(), **change))
