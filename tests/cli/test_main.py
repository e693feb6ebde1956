"""The command line as a whole: what it needs, and how it ends."""

import sys

import pytest
from support.interpreter import batchnorm
from support.paths import ROOT

from batchnorm.cli import fold, kernels, main
from batchnorm.cli.extras import EXTRAS
from batchnorm.kernels import bindings

NOT_FOR_NETWORKS = ["rich", "matplotlib", "pydantic", "torchvision", "PIL", "onnx", "onnxscript"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["fold", "tiny:with_norm", "--input", "2x3x8x8"],
        ["insert", "tiny:plain", "--input", "2x3x8x8", "--data", "tiny:batches"],
        ["recalibrate", "tiny:with_norm", "--data", "tiny:batches"],
    ],
    ids=lambda arguments: arguments[0],
)
@pytest.mark.usefixtures("tiny")
def test_networks_need_torch_numpy_and_tyro_alone(arguments, tmp_path):
    done = batchnorm(*arguments, missing=[*NOT_FOR_NETWORKS, "safetensors"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "batchnorm:" not in done.stderr  # recalibrate shows its progress there
    assert done.stdout.startswith("name ")


@pytest.mark.parametrize("package", ["tyro", "rich", "matplotlib", "pydantic"])
def test_a_missing_package_is_one_line_that_says_what_to_install(package, tmp_path):
    done = batchnorm("mnist", "--steps", 1, "--eval-every", 1, missing=[package], cwd=tmp_path)
    extra = "cli" if package == "tyro" else "paper"
    install = f"pip install 'batchnorm[{extra}]'"
    assert done.stderr == f"batchnorm: this command needs {package}. Install it with: {install}\n"
    assert done.returncode == 1
    assert not list(tmp_path.iterdir())


def test_without_torchvision_inception_says_what_to_install(tmp_path):
    done = batchnorm("inception", "all", "--data", "fashion", missing=["torchvision"], cwd=tmp_path)
    install = "pip install 'batchnorm[imagenet]'"
    assert done.stderr == f"batchnorm: this command needs torchvision. Install it with: {install}\n"
    assert not list(tmp_path.iterdir())


def test_a_missing_package_of_others_is_not_ours_to_explain(monkeypatch, capsys):
    def fail(*_args, **_options):
        raise ModuleNotFoundError("No module named 'theirs'", name="theirs")

    monkeypatch.setattr(fold, "warn_without_kernels", fail)
    monkeypatch.setattr(sys, "argv", ["batchnorm", "fold", "tiny:with_norm", "--input", "2x3x8x8"])
    with pytest.raises(SystemExit, match="70"):
        main.main()
    assert capsys.readouterr().err.startswith(
        "batchnorm: ModuleNotFoundError: No module named 'theirs' (test_main.py, "
    )


def test_the_extras_are_those_of_the_project():
    tomllib = pytest.importorskip("tomllib", reason="of Python 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for package, extra in EXTRAS.items():
        distribution = {"PIL": "pillow"}.get(package, package)
        assert any(line.startswith(f"{distribution}>") for line in project["optional-dependencies"][extra])


def test_ctrl_c_ends_with_its_usual_status(run, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(fold, "warn_without_kernels", interrupted)
    with pytest.raises(SystemExit) as exited:
        run("fold", "tiny:with_norm", "--input", "2x3x8x8")
    assert exited.value.code == 130


@pytest.mark.parametrize("target", ["x86-64-v3", None])
def test_a_notice_says_that_the_kernels_are_missing(monkeypatch, capsys, target):
    monkeypatch.setattr(bindings, "kernel_target", lambda: target)
    kernels.warn_without_kernels()
    assert ("runs without its compiled CPU kernels" in capsys.readouterr().err) is (target is None)


@pytest.mark.parametrize(
    "arguments",
    [
        ["mnist", "--lr", "-1"],
        ["inception"],
        ["evaluate", "nowhere", "--data", "fashion"],
        ["fold", "nowhere:net", "--input", "1x3"],
        ["insert", "nowhere:net", "--input", "1x3"],
        ["recalibrate", "nowhere:net", "--data", "nowhere:batches"],
        ["doctor", "nowhere:net", "--data", "nowhere:batches"],
        ["trial", "nowhere:net", "--data", "nowhere:batches"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_every_command_that_computes_gives_the_notice(monkeypatch, run, capsys, arguments):
    monkeypatch.setattr(bindings, "kernel_target", lambda: None)
    with pytest.raises(SystemExit):
        run(*arguments)
    assert "runs without its compiled CPU kernels" in capsys.readouterr().err


def test_a_word_that_is_no_command_lists_the_commands(run, capsys):
    with pytest.raises(SystemExit) as exited:
        run("flod")
    assert exited.value.code == 2
    commands = ", ".join(main.COMMANDS)
    line = f"batchnorm: there is no command 'flod'; wanted one of {commands}. Did you mean 'fold'?\n"
    assert capsys.readouterr().err == line
