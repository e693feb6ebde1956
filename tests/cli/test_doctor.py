"""`batchnorm doctor`: what it prints, the page, and the exit status."""

import pytest
from support.interpreter import batchnorm

import batchnorm as bn


@pytest.fixture
def status(run, capsys):
    """Run the command line, and return its exit status, what it prints on stdout and on stderr."""

    def status(*arguments):
        with pytest.raises(SystemExit) as exited:
            run("doctor", *arguments)
        printed = capsys.readouterr()
        return exited.value.code, printed.out, printed.err

    return status


@pytest.mark.usefixtures("tiny")
def test_wrong_statistics_end_with_1_and_name_the_layer(status):
    code, out, err = status("tiny:with_norm", "--data", "tiny:batches")
    assert code == 1
    line = next(line for line in out.splitlines() if "stale" in line)
    assert line.split()[:4] == ["error", "stale", "statistics", "1"]
    assert "remedy: bn.recalibrate(model, batches)" in out
    assert "doctor: batch 1" in err


def test_a_healthy_network_ends_with_0(status, tiny, monkeypatch):
    def healthy():
        model = tiny.with_norm()
        bn.recalibrate(model, tiny.batches())
        return model.eval()

    monkeypatch.setattr(tiny, "healthy", healthy, raising=False)
    code, out, _ = status("tiny:healthy", "--data", "tiny:batches")
    assert code == 0
    assert "0 errors, 0 warnings" in out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["tiny:plain", "--data", "tiny:batches"], "batchnorm: Sequential has no BatchNorm layer: nothing to examine"),
        (["tiny:with_norm", "--data", "tiny:nothing"], "batchnorm: cannot make tiny:nothing"),
        (["tiny:with_norm", "--data", "tiny:batches", "--html", "page.txt"], "batchnorm: page.txt ends in '.txt'"),
    ],
    ids=["no BN", "no batches", "no page"],
)
@pytest.mark.usefixtures("tiny")
def test_what_cannot_be_examined_ends_with_2_and_one_line(status, arguments, line):
    code, out, err = status(*arguments)
    assert code == 2
    assert err.startswith(line)
    assert err.count("\n") == 1
    assert out == ""


@pytest.mark.usefixtures("tiny")
def test_the_mode_that_the_factory_leaves_is_examined(status, tiny, monkeypatch):
    def half():
        model = tiny.with_norm().train()
        model[1].eval()
        return model

    monkeypatch.setattr(tiny, "half", half, raising=False)
    _, out, _ = status("tiny:half", "--data", "tiny:batches")
    assert "half frozen" in out


@pytest.mark.usefixtures("tiny")
def test_a_page_is_written(status, tmp_path):
    _, out, _ = status("tiny:with_norm", "--data", "tiny:batches", "--html", "page.html", "--batches", "2")
    assert out.splitlines()[-1] == "page.html"
    assert (tmp_path / "page.html").read_text().startswith("<!DOCTYPE html>")


@pytest.mark.usefixtures("tiny")
def test_it_needs_torch_numpy_and_tyro_alone(tmp_path):
    missing = ["rich", "matplotlib", "pydantic", "torchvision", "PIL", "onnx", "onnxscript", "safetensors"]
    done = batchnorm("doctor", "tiny:with_norm", "--data", "tiny:batches", missing=missing, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout.startswith("severity ")
