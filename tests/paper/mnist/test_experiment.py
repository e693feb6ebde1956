"""Fig. 1: both arms are trained, and a run can be stopped, killed and resumed."""

import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
import torch
from support.commands import start, wait_for_rows
from torch import nn

import batchnorm as bn
from batchnorm.paper.mnist.batches import Batches
from batchnorm.paper.mnist.config import MnistConfig, config_to_json
from batchnorm.paper.mnist.data import load_mnist
from batchnorm.paper.mnist.experiment import ArmTraining, load_data, run_mnist
from batchnorm.paper.mnist.network import network
from batchnorm.paper.mnist.records import ARMS
from batchnorm.paper.training.loop import train
from batchnorm.paper.training.run import Run
from batchnorm.paper.training.settings import saved_settings


def ignore(row):
    """Show no progress."""


SHORT = MnistConfig(steps=60, eval_every=20, threads=1)


DATA = load_mnist()


def run_short(folder, config=SHORT, report=ignore, stop=None):
    run = Run.create(folder, "mnist", config_to_json(config))
    return run, run_mnist(config, DATA, run, report, stop or Event())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return a run that was never stopped, and its rows."""
    return run_short(tmp_path_factory.mktemp("finished"))


@pytest.mark.parametrize("arm", ARMS)
def test_training_is_that_of_a_plain_pytorch_loop(arm):
    config = replace(SHORT, steps=25, eval_every=25)
    ours = ArmTraining(config, arm, DATA)
    model = nn.Sequential(
        *(nn.BatchNorm1d(100) if isinstance(layer, bn.BatchNorm1d) else layer for layer in network(arm, 0.1, 1))
    )
    optimizer, batches = torch.optim.SGD(model.parameters(), lr=0.1), Batches(60_000, 60, seed=1)
    for step in range(25):
        index = batches.indices(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(DATA.train_images[index].float()), DATA.train_labels[index]).backward()
        optimizer.step()
    train(ours, ignore, Event())
    # The same arithmetic: only the running statistics are blended in float32 where torch blends in double.
    torch.testing.assert_close(ours.model.state_dict(), model.state_dict(), rtol=1e-5, atol=1e-6)


def test_records_have_every_measurement_of_both_arms_in_order(finished):
    run, rows = finished
    assert [(row["step"], row["arm"]) for row in rows] == [(s, arm) for s in (0, 20, 40, 60) for arm in ARMS]
    assert set(rows[-1]) == {"step", "arm", "loss", "test_accuracy", "p15", "p50", "p85"}
    assert rows[0]["loss"] is None
    assert 0 < rows[-1]["loss"] < 3
    assert run.rows() == rows


def test_bn_learns_faster_from_the_first_steps(finished):
    _, rows = finished
    assert rows[-1]["test_accuracy"] > rows[-2]["test_accuracy"] + 0.2


@pytest.mark.parametrize("threads", [2, 4])
def test_the_number_of_threads_changes_no_bit(finished, tmp_path, threads):
    before = torch.get_num_threads()
    _, rows = run_short(tmp_path / "threads", replace(SHORT, threads=threads))
    assert rows == finished[1]
    assert torch.get_num_threads() == before


def test_a_resume_from_the_middle_goes_on_to_the_same_bits(finished, tmp_path, monkeypatch):
    monkeypatch.setattr("batchnorm.paper.training.loop.CHECKPOINT_SECONDS", 0.0)
    run = Run.create(tmp_path / "run", "mnist", config_to_json(SHORT))

    def fail_late(row):
        if row["step"] == 40:
            raise KeyError("a crash")

    with pytest.raises(KeyError, match="a crash"):
        run_mnist(SHORT, DATA, run, fail_late, Event())
    state = run.checkpoint("plain").load()
    assert state is not None
    assert state["step"] == 39
    again = []
    assert run_mnist(SHORT, DATA, run, again.append, Event()) == finished[1]
    assert [row["step"] for row in again if row["arm"] == "plain"] == [40, 60]


def test_a_run_that_another_process_writes_is_refused(tmp_path):
    process = started(tmp_path / "run", 2, "--steps", 100_000)
    second = start("mnist", "--resume", tmp_path / "run", output=tmp_path / "second")
    second.join(60)
    process.kill()
    process.join()
    assert second.exitcode == 1
    assert "is being written by another process" in (tmp_path / "second").read_text()


def test_checkpoints_without_their_rows_are_named(tmp_path):
    short = replace(SHORT, steps=20)
    run, _ = run_short(tmp_path / "run", short)
    run.metrics.unlink()
    with pytest.raises(bn.BatchNormError, match=r"lacks rows of 'plain' before step 20.*remove .*checkpoint-plain\.pt"):
        run_mnist(short, DATA, run, ignore, Event())


def test_the_datas_path_is_kept_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved = config_to_json(replace(SHORT, data=Path("idx")))
    assert saved["data"] == str(tmp_path / "idx")
    assert saved_settings(MnistConfig, saved, tmp_path / "config.json").data == tmp_path / "idx"


def test_a_stopped_run_resumes_to_the_same_bits(finished, tmp_path):
    stop = Event()
    run, rows = run_short(
        tmp_path / "run",
        report=lambda row: stop.set() if (row["step"], row["arm"]) == (40, "plain") else None,
        stop=stop,
    )
    assert {row["step"] for row in rows if row["arm"] == "plain"} == {0, 20, 40}
    resumed, experiment, saved = Run.open(run.folder)
    assert experiment == "mnist"
    assert saved_settings(MnistConfig, saved, run.config, experiment) == SHORT
    assert run_mnist(SHORT, DATA, resumed, ignore, Event()) == finished[1]
    assert run.metrics.read_bytes() == finished[0].metrics.read_bytes()


def test_rows_after_the_checkpoint_and_a_torn_line_are_measured_again(finished, tmp_path):
    stop = Event()
    run, _ = run_short(tmp_path / "run", report=lambda row: stop.set() if row["step"] == 20 else None, stop=stop)
    with run.metrics.open("a") as file:
        file.write(
            '{"step": 40, "arm": "plain", "loss": 9.0, "test_accuracy": 0.0, "p15": 0, "p50": 0, "p85": 0}\n{"step"'
        )
    assert run_mnist(SHORT, DATA, run, ignore, Event()) == finished[1]


def started(folder, rows, *arguments, **settings):
    """Start a run into `folder`, and return its process when it has `rows` records."""
    process = start("mnist", "--threads", 1, *arguments, "--out", folder, output=folder.parent / "output", **settings)
    wait_for_rows(process.is_alive, folder, rows)
    assert process.is_alive(), (folder.parent / "output").read_text()
    return process


def test_kill_9_then_resume_gives_the_same_bits(tmp_path):
    settings = ("--steps", 600, "--eval-every", 100)
    process = started(tmp_path / "killed", 9, *settings, checkpoint_seconds=0.1)
    process.kill()
    process.join()
    killed = (tmp_path / "killed" / "metrics.jsonl").read_text()
    assert '"step": 600, "arm": "bn"' not in killed
    for arguments in (("--resume", tmp_path / "killed"), ("--out", tmp_path / "whole", *settings, "--threads", 1)):
        ended = start("mnist", *arguments, output=tmp_path / "output")
        ended.join(120)
        assert ended.exitcode == 0, (tmp_path / "output").read_text()
    assert (tmp_path / "killed/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()


def test_ctrl_c_leaves_a_plotted_partial_run_and_says_how_to_go_on(tmp_path):
    process = started(tmp_path / "run", 4, "--steps", 100_000, "--eval-every", 50)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    output = (tmp_path / "output").read_text()
    assert process.exitcode == 130
    assert f"Continue with: batchnorm mnist --resume {tmp_path / 'run'}" in output
    assert "Traceback" not in output
    for name in ("figure1.png", "figure1.svg", "report.html", "config.json"):
        assert (tmp_path / "run" / name).stat().st_size > 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {row["arm"] for row in rows} == set(ARMS)


def test_a_damaged_checkpoint_is_named(tmp_path):
    short = replace(SHORT, steps=20)
    run, _ = run_short(tmp_path / "run", short)
    path = run.folder / "checkpoint-bn.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(bn.BatchNormError, match=r"checkpoint-bn\.pt is damaged \(.*\): remove it"):
        run_mnist(short, DATA, run, ignore, Event())


@pytest.mark.filterwarnings("ignore:.*not finite:RuntimeWarning")
def test_divergence_is_recorded_not_a_crash(tmp_path):
    run, rows = run_short(tmp_path / "run", replace(SHORT, lr=1e30))
    assert rows[-1]["loss"] is None or math.isfinite(rows[-1]["loss"])
    assert "NaN" not in run.metrics.read_text()
    assert "Infinity" not in run.metrics.read_text()
    assert any(row["p50"] is None for row in run.rows())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, r"--steps must be an integer from 1 to 1,000,000,000,000; got 0"),
        ({"eval_every": 0}, r"--eval-every must be an integer from 1 to .*; got 0"),
        ({"threads": 0}, r"--threads must be an integer from 1 to 1,024; got 0"),
        ({"lr": 0.0}, r"--lr must be a number from 1e-30 to 1e\+30; got 0\.0"),
        ({"lr": float("nan")}, r"--lr must be a number from 1e-30 to 1e\+30; got NaN"),
        ({"std": -1.0}, r"--std must be a number from 1e-30 to 1e\+30; got -1\.0"),
        ({"batch_size": 1}, r"--batch-size must be an integer from 2 to 1,000,000; got 1"),
    ],
)
def test_settings_that_cannot_run_are_refused(change, message):
    with pytest.raises(bn.BatchNormError, match=message):
        load_data(replace(SHORT, **change))
