"""`batchnorm trial`."""

import json
import os
import signal

import pytest
import torch
from support.commands import start, wait_for_rows
from torch import nn

OPTIONS = ("--lr", "0.01", "--steps", "4", "--eval-every", "2", "--seeds", "2")


@pytest.fixture(autouse=True)
def _pairs(tiny):
    """Add a small network and (input, target) batches to the module `tiny`."""
    torch.manual_seed(0)
    tiny.pairs = lambda: [(torch.randn(6, 4), torch.randn(6, 1)) for _ in range(6)]
    tiny.mlp = lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    tiny.negative = lambda: lambda output, target: -(output - target).abs().mean()


def test_a_trial_ends_with_the_table_the_verdict_and_the_paths(run, tmp_path):
    output = run("trial", "tiny:mlp", "--data", "tiny:pairs", "--metric", "tiny:negative", *OPTIONS, "--out", "run")
    assert output.startswith("Run folder: run\nSteps to the plain network's best, and the best")
    assert "with BN, lr 0.3" in output
    assert "best, <lambda> -" in output.replace("\n", " ")
    names = ("metrics.jsonl", "figure2.png", "figure2.svg", "report.html")
    assert output.splitlines()[-4:] == [f"run/{name}" for name in names]
    again = run("trial", "--resume", "run")
    assert again == output
    saved = json.loads((tmp_path / "run/config.json").read_text())
    assert (saved["network"], saved["data"], saved["metric"]) == ("tiny:mlp", "tiny:pairs", "tiny:negative")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "wanted a network and its batches: batchnorm trial mine:network --data mine:batches"),
        (["tiny:mlp"], "wanted a network and its batches"),
        (["tiny:nothing", "--data", "tiny:pairs"], "cannot make tiny:nothing: AttributeError"),
        (["tiny:mlp", "--data", "tiny:number"], "tiny:number returns int; wanted an iterable of batches"),
        (["tiny:number", "--data", "tiny:pairs"], "tiny:number returns int; wanted a torch.nn.Module"),
        (["tiny:mlp", "--data", "tiny:pairs", "--loss", "tiny:wants"], "cannot make tiny:wants: TypeError"),
        (["tiny:mlp", "--data", "tiny:pairs", "--loss", "tiny:number"], "loss must be a function of (output, target)"),
        (["tiny:mlp", "--data", "tiny:batches"], "batch 1 (the first is 1) is a Tensor; wanted (input, target)"),
        (["tiny:mlp", "--data", "tiny:pairs", "--steps", "0"], "--steps must be an integer from 1 to"),
        (["tiny:mlp", "--data", "tiny:pairs", "--out", "tiny.py"], "tiny.py exists, and nothing is overwritten"),
        (["--resume", "nowhere"], "nowhere does not exist; wanted the folder of a run"),
        (
            ["--resume", "nowhere", "--lr", "1"],
            "--resume nowhere continues with that run's own settings; give no others",
        ),
        (
            ["tiny:mlp", "--resume", "nowhere"],
            "--resume nowhere continues with that run's own settings; give no others",
        ),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing_behind(fails, tmp_path, arguments, message):
    assert fails("trial", *arguments).startswith(message)
    assert not (tmp_path / "runs").exists()


def test_a_run_of_another_command_is_one_line(fails, tmp_path):
    (tmp_path / "config.json").write_text('{"experiment": "mnist", "made_with": {}}')
    assert fails("trial", "--resume", tmp_path) == f"{tmp_path} is a run of 'mnist'; a trial resumes its own"


MINE = """
import torch
from torch import nn

def network():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1))

def batches():
    return [(torch.randn(16, 4), torch.randn(16, 1)) for _ in range(10)]
"""


def started(folder, rows, *arguments, **settings):
    """Start a trial into `folder`, and return its process when the run has `rows` records."""
    process = start(
        "trial", *arguments, "--out", folder, cwd=folder.parent, output=folder.parent / "output", **settings
    )
    wait_for_rows(process.is_alive, folder, rows)
    assert process.is_alive(), (folder.parent / "output").read_text()
    return process


def test_a_killed_trial_resumes_with_the_same_bits(tmp_path):
    """The factories draw from torch's generator and seed nothing: the command seeds it for them."""
    (tmp_path / "mine.py").write_text(MINE)
    made = ("mine:network", "--data", "mine:batches", "--lr", 0.01, "--steps", 60, "--eval-every", 20, "--seeds", 1)
    process = started(tmp_path / "killed", 11, *made, checkpoint_seconds=0.0)
    process.kill()
    process.join()
    killed = (tmp_path / "killed/metrics.jsonl").read_text()
    assert killed.count("\n") < 28
    for arguments in (("--resume", "killed"), (*made, "--out", "whole")):
        ended = start("trial", *arguments, cwd=tmp_path, output=tmp_path / "output")
        ended.join(120)
        assert ended.exitcode == 0, (tmp_path / "output").read_text()
    assert (tmp_path / "killed/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()


def test_ctrl_c_says_how_to_go_on(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    made = ("mine:network", "--data", "mine:batches", "--steps", 100_000, "--lr", 1e-4)
    process = started(tmp_path / "run", 2, *made)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    output = (tmp_path / "output").read_text()
    assert process.exitcode == 130
    assert f"Stopped early. Continue with: batchnorm trial --resume {tmp_path / 'run'}" in output
    assert "Traceback" not in output
    assert (tmp_path / "run/checkpoint-plain-x0.2-seed-1.pt").exists()
