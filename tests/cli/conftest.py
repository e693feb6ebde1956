"""The command line as a person types it, and a module with networks and batches in the working directory."""

import sys

import pytest

from batchnorm.cli import main

TINY = """
import torch
from torch import nn

def with_norm():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    return model

def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(144, 2), nn.Sigmoid())

def batches():
    torch.manual_seed(1)
    return [torch.randn(5, 3, 8, 8) * 2 + 1 for _ in range(3)]

def wants(size):
    return nn.Linear(size, size)

number = lambda: 7
"""


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Write a module `tiny` into the working directory, and import it."""
    (tmp_path / "tiny.py").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "tiny", raising=False)
    sys.path.insert(0, str(tmp_path))
    import tiny  # pyright: ignore[reportMissingImports]

    monkeypatch.setitem(sys.modules, "tiny", tiny)
    return tiny


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line in this process, and return what it prints on stdout."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["batchnorm", *map(str, arguments)])
        main.main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def fails(run):
    """Run the command line, and return the one line that it ends with."""

    def fails(*arguments):
        with pytest.raises(SystemExit, match=r"^batchnorm: ") as exited:
            run(*arguments)
        assert "\n" not in str(exited.value.code)
        return str(exited.value.code).removeprefix("batchnorm: ")

    return fails
