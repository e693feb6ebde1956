"""Each error has a type that says who can mend it, and all have one root."""

import pickle
import sys

import pytest

import batchnorm as bn
from batchnorm.cli import main
from batchnorm.errors import DownloadError, Failure, PeerError, StorageError, did_you_mean, first_few, first_line


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [(bn.BatchNormError, ValueError), (StorageError, OSError), (DownloadError, OSError), (PeerError, RuntimeError)],
)
def test_every_error_has_the_root_and_a_builtin_type(kind, builtin):
    assert issubclass(kind, Failure)
    assert [base for base in (ValueError, OSError, RuntimeError) if issubclass(kind, base)] == [builtin]
    copy = pickle.loads(pickle.dumps(kind("disk: full")))  # processes send errors to one another
    assert type(copy) is kind
    assert str(copy) == "disk: full"


@pytest.mark.parametrize("kind", [bn.BatchNormError, StorageError, DownloadError, PeerError])
def test_the_command_prints_every_error_as_one_line(monkeypatch, kind):
    def fail(*_):
        raise kind("the reason")

    monkeypatch.setattr("batchnorm.paper.show.inception_terminal.show_report", fail)
    monkeypatch.setattr(sys, "argv", ["batchnorm", "report", "runs"])
    with pytest.raises(SystemExit) as exited:
        main.main()
    assert exited.value.code == "batchnorm: the reason"


def test_first_line_drops_what_torch_adds():
    assert first_line(RuntimeError("\nno kernel\nstack: ...")) == "no kernel"
    assert first_line(KeyError()) == "KeyError"


def test_first_few_counts_the_rest():
    assert first_few(["a", "b"], 2) == "a; b"
    assert first_few(["a", "b", "c", "d"], 2) == "a; b; and 2 more"


def test_did_you_mean_names_the_nearest_or_nothing():
    assert did_you_mean("flod", ["mnist", "fold", "insert"]) == ". Did you mean 'fold'?"
    assert did_you_mean("unlike", ["fold"]) == ""
