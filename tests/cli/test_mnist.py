"""`batchnorm mnist`."""

import re

import pytest


def test_a_run_ends_with_the_table_and_the_paths(run, tmp_path):
    output = run("mnist", "--steps", 20, "--eval-every", 10, "--out", tmp_path / "run")
    table, paths = output.split("Training steps to a test accuracy")[1].split("with BN")
    assert "steps to 90%" in table
    assert paths.split()[-4:] == [
        str(tmp_path / "run" / name) for name in ("metrics.jsonl", "figure1.png", "figure1.svg", "report.html")
    ]
    again = run("mnist", "--resume", tmp_path / "run")
    assert again.split("Training steps")[1] == output.split("Training steps")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lr", -1], "--lr must be a number from 1e-30 to 1e+30; got -1.0"),
        (["--data", "nowhere"], "nowhere has neither train-images-idx3-ubyte"),
        (["--resume", "nowhere"], "nowhere does not exist; wanted the folder of a run, which has a config.json"),
        (["--resume", "nowhere", "--lr", 1], "--resume nowhere continues with that run's own settings; give no others"),
        (["--resume", "nowhere", "--sweep"], "--resume nowhere continues with that run's own settings; give no others"),
        (["--sweep", "--lr", 1], "--sweep chooses --lr itself"),
        (["--batch-size", 70_000], "batch size 70000 does not fit 60000 training examples"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing_behind(monkeypatch, fails, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert fails("mnist", *arguments).startswith(message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[1]", "is not the folder of a run"),
        ('{"experiment": "imagenet", "made_with": {}}', "is a run of 'imagenet'; batchnorm mnist resumes its own"),
        ('{"experiment": "mnist", "made_with": {}, "data": null, "color": 1}', "other settings than this version"),
        ('{"experiment": "mnist", "made_with": {}}', "other settings than this version"),
    ],
)
def test_a_damaged_run_is_one_line(fails, tmp_path, config, message):
    (tmp_path / "config.json").write_text(config)
    assert re.search(message, fails("mnist", "--resume", tmp_path))
