"""The command as a person types it."""

import re
import subprocess
import sys

import pytest
import torch

import batchnorm as bn
from batchnorm.cli import main
from batchnorm.paper.mnist.config import MnistConfig

OPTIONS = ["steps", "batch-size", "lr", "std", "seed", "eval-every", "threads", "data", "out", "resume", "sweep"]


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["batchnorm", *map(str, arguments)])
    main.main()


@pytest.fixture
def help_text(monkeypatch, capsys):
    with pytest.raises(SystemExit) as exited:
        run(monkeypatch, "mnist", "--help")
    assert exited.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("option", OPTIONS)
def test_help_explains_every_option_with_its_default(help_text, option):
    words = re.sub(r"[\s│]+", " ", help_text)
    explained = re.findall(rf"--{option} .{{10,}}?\(default: ([^)]*)\)|--{option}, .*?\(default: ([^)]*)\)", words)
    default = False if option == "sweep" else getattr(MnistConfig(), option.replace("-", "_"), None)
    assert str(default) in {found for groups in explained for found in groups}


@pytest.mark.parametrize("compiled", [True, False])
def test_the_command_says_whether_the_kernels_are_missing(monkeypatch, capsys, compiled):
    monkeypatch.setattr(main, "kernels_available", lambda: compiled)
    with pytest.raises(SystemExit):
        run(monkeypatch, "--help")
    assert ("installed without its compiled CPU kernels" in capsys.readouterr().err) is not compiled


def test_a_run_ends_with_the_table_and_the_paths(monkeypatch, capsys, tmp_path):
    run(monkeypatch, "mnist", "--steps", 20, "--eval-every", 10, "--out", tmp_path / "run")
    output = capsys.readouterr().out
    table, paths = output.split("Training steps to a test accuracy")[1].split("with BN")
    assert "steps to 90%" in table
    assert paths.split()[-4:] == [
        str(tmp_path / "run" / name) for name in ("metrics.jsonl", "figure1.png", "figure1.svg", "report.html")
    ]
    run(monkeypatch, "mnist", "--resume", tmp_path / "run")
    assert capsys.readouterr().out.split("Training steps")[1] == output.split("Training steps")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lr", -1], "lr must be a positive number; got -1.0"),
        (["--data", "nowhere"], "nowhere has neither train-images-idx3-ubyte"),
        (["--resume", "nowhere"], "nowhere is not the folder of a run"),
        (["--resume", "nowhere", "--lr", 1], "give no others beside it"),
        (["--resume", "nowhere", "--sweep"], "give no others beside it"),
        (["--sweep", "--lr", 1], "--sweep chooses --lr itself"),
        (["--batch-size", 70_000], "batch size 70000 does not fit 60000 training examples"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing_behind(monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message) as exited:
        run(monkeypatch, "mnist", *arguments)
    assert str(exited.value.code).count("\n") == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[1]", "is not the folder of a run"),
        ('{"experiment": "imagenet", "made_with": {}}', "is a run of 'imagenet'"),
        ('{"experiment": "mnist", "made_with": {}, "data": null, "colour": 1}', "other settings than this version"),
        ('{"experiment": "mnist", "made_with": {}}', "other settings than this version"),
    ],
)
def test_a_damaged_run_is_one_line(monkeypatch, tmp_path, config, message):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, "mnist", "--resume", tmp_path)


def test_the_version_is_the_packages_and_torchs(monkeypatch, capsys):
    run(monkeypatch, "--version")
    assert capsys.readouterr().out == f"batchnorm {bn.__version__}, torch {torch.__version__}\n"


def test_without_its_extras_the_command_says_what_to_install():
    code = "import sys; sys.modules['rich.progress'] = sys.modules['rich'] = None; import batchnorm.cli.main"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip() == "batchnorm: the command needs rich. Install it with: pip install 'batchnorm[paper]'"
