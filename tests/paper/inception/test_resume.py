"""A run that was stopped or killed resumes to the same bits."""

import os
import random
import signal
import time
from dataclasses import replace
from threading import Event

import pytest
import torch
from support.commands import start, wait_for_rows
from support.inception_runs import TINY, assert_same_bits, load_checkpoint, options, resume, train

from batchnorm.paper.inception.comparison import read_records
from batchnorm.paper.inception.config import InceptionConfig
from batchnorm.paper.inception.jobs import CHECKPOINT, choose_jobs, new_jobs, resumed_jobs
from batchnorm.paper.inception.variants import BN_X5, INCEPTION_X5
from batchnorm.paper.training.run import Run


def test_stopping_and_resuming_gives_the_same_bits(tree, tmp_path, finished):
    stop = Event()
    (job,) = new_jobs("bn-x5", replace(TINY, data=tree), tmp_path / "run")

    def stop_after_6(step, _):
        if step == 6:
            stop.set()  # The loop sees it at the end of the next step.

    assert load_checkpoint(resume(job, stop, stop_after_6))["step"] == 7
    assert_same_bits(resume(job), finished)


@pytest.mark.parametrize("seed", [1, 2])
def test_resuming_after_kill_9_gives_the_same_bits(tree, tmp_path, finished, seed):
    folder, rng = tmp_path / "run", random.Random(seed)
    process = start("inception", "bn-x5", *options(tree, folder), "--checkpoint-minutes", 1e-6)
    wait_for_rows(process.is_alive, folder, 1)
    time.sleep(rng.uniform(0, 1.0))
    process.kill()
    process.join()
    (job,) = choose_jobs(None, InceptionConfig(), None, folder)
    assert_same_bits(resume(job), finished)


def test_color_shards_through_the_command_resume_after_kill_9_to_the_same_bits(shards, tmp_path):
    arguments = ["inception", "only-rate", "--data", shards, "--small", "--steps", 12, "--eval-every", 3]
    arguments += ["--batch-size", 16, "--workers", 0, "--threads", 1, "--checkpoint-minutes", 1e-6]
    whole = start(*arguments, "--out", tmp_path / "whole")
    whole.join()
    killed = start(*arguments, "--out", tmp_path / "killed")
    wait_for_rows(killed.is_alive, tmp_path / "killed", 2)
    killed.kill()
    killed.join()
    assert load_checkpoint(Run(tmp_path / "killed"))["step"] < 12
    start("inception", "--resume", tmp_path / "killed").join()
    assert_same_bits(Run(tmp_path / "killed"), Run(tmp_path / "whole"))
    assert load_checkpoint(Run(tmp_path / "whole"))["channels"] == 3


def test_ctrl_c_ends_with_a_checkpoint_and_says_how_to_resume(tree, tmp_path):
    folder = tmp_path / "run"
    process = start("inception", "bn-x5", *options(tree, folder, steps=5000), output=tmp_path / "output")
    wait_for_rows(process.is_alive, folder, 2)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    output = (tmp_path / "output").read_text()
    assert f"batchnorm inception --resume {folder}" in output, output
    assert process.exitcode == 130
    assert load_checkpoint(Run(folder))["step"] > 0


@pytest.fixture
def diverged(tree, tmp_path):
    """Train at a learning rate that makes the loss infinite, and return the run."""
    return train(tmp_path / "run", INCEPTION_X5, replace(TINY, data=tree, lr=1e6))


def test_divergence_ends_the_run_with_a_record(diverged):
    last = diverged.rows()[-1]
    assert last["diverged"] is True
    assert last["loss"] is None
    assert 0 < last["step"] < 24
    (record,) = read_records([diverged.folder])
    assert record.diverged == last["step"]


def test_a_diverged_run_does_not_go_on(diverged):
    before = diverged.rows()
    resume(*resumed_jobs(diverged.folder))
    assert diverged.rows() == before


def test_a_truncated_checkpoint_gives_way_to_the_one_before(tree, tmp_path, finished):
    run = train(tmp_path / "run", BN_X5, replace(TINY, data=tree, checkpoint_minutes=1e-9))
    checkpoint = run.checkpoint(CHECKPOINT)
    assert torch.load(checkpoint.previous, weights_only=True)["step"] == 11
    checkpoint.path.write_bytes(checkpoint.path.read_bytes()[:5000])
    with pytest.warns(UserWarning, match=r"checkpoint-training\.pt is damaged .*previous\.pt, step 11"):
        assert_same_bits(resume(*resumed_jobs(run.folder)), finished)
