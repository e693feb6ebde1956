"""`batchnorm fold`, `insert` and `recalibrate` as a person types them."""

import importlib.util
import os
import re
import sys
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from batchnorm.cli import command, main

SHAPE = (2, 3, 8, 8)
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
    """A module `tiny` in the working directory."""
    (tmp_path / "tiny.py").write_text(TINY)
    (tmp_path / "old.onnx").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "tiny", raising=False)
    sys.path.insert(0, str(tmp_path))
    import tiny  # pyright: ignore[reportMissingImports]

    monkeypatch.setitem(sys.modules, "tiny", tiny)
    return tiny


@pytest.fixture
def run(monkeypatch, capsys, tiny):  # noqa: ARG001
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["batchnorm", *map(str, arguments)])
        main.main()
        return capsys.readouterr().out

    return run


def images(n):
    return torch.randn(n, *SHAPE[1:], generator=torch.Generator().manual_seed(2))


def assert_close(got, wanted):
    # two float32 layers, in another order of operations
    torch.testing.assert_close(torch.as_tensor(got), wanted, rtol=1e-5, atol=1e-5)


# --- fold ---


def test_fold_prints_the_table_the_error_and_the_latency(run):
    output = run("fold", "tiny:with_norm", "--input", "2x3x8x8")
    assert re.search(r"^1 +folded +0$", output, re.MULTILINE)
    assert re.search(r"1 of 1 folded; relative error \d\.\de-\d\d in float32", output)
    assert re.search(
        r"latency \d+\.\d\d ms before, \d+\.\d\d ms after \(median of 20, alternating, 1 threads\)", output
    )


def load_onnx(file):
    session = pytest.importorskip("onnxruntime").InferenceSession(file)
    (name,) = (value.name for value in session.get_inputs())
    return lambda x: session.run(None, {name: x.numpy()})[0]


LOADERS = {".onnx": load_onnx, ".pt2": lambda file: torch.export.load(file).module()}


@pytest.mark.parametrize("suffix", LOADERS)
@pytest.mark.parametrize("shape", ["1x3x8x8", "2x3x8x8"])
def test_fold_writes_a_network_for_any_batch_size(run, tiny, suffix, shape):
    output = run("fold", "tiny:with_norm", "--input", shape, "--out", f"out{suffix}")
    assert f"wrote out{suffix}, {os.path.getsize(f'out{suffix}') / 1e6:.1f} MB" in output  # noqa: PTH202
    loaded = LOADERS[suffix](f"out{suffix}")
    for n in (1, 2, 5):
        assert_close(loaded(images(n)), tiny.with_norm().eval()(images(n)))


def test_fold_writes_tensors_for_the_same_network_without_batch_norm(run, tiny):
    run("fold", "tiny:with_norm", "--input", "2x3x8x8", "--out", "out.safetensors")
    state = load_file("out.safetensors")
    assert sorted(state) == ["0.bias", "0.weight", "4.bias", "4.weight"]
    plain = tiny.with_norm().eval()
    plain[1] = nn.Identity()
    plain.load_state_dict(state)
    assert_close(plain(images(3)), tiny.with_norm().eval()(images(3)))


# --- weights ---


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_are_loaded(run, tiny, suffix):
    trained = tiny.with_norm()
    nn.init.normal_(trained[4].weight)
    save = torch.save if suffix == ".pt" else save_file
    save(trained.state_dict(), f"weights{suffix}")
    run("fold", "tiny:with_norm", "--weights", f"weights{suffix}", "--input", "2x3x8x8", "--out", "out.pt2")
    assert_close(torch.export.load("out.pt2").module()(images(2)), trained.eval()(images(2)))


def test_an_old_checkpoint_does_not_count_batches(run, tiny):
    state = tiny.with_norm().state_dict()
    del state["1.num_batches_tracked"]
    torch.save(state, "weights.pt")
    assert "1 of 1 folded" in run("fold", "tiny:with_norm", "--weights", "weights.pt", "--input", "2x3x8x8")


class Code:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def write_code(state):
    torch.save({"state_dict": state, "extra": Code()}, "weights.pt")


def write_model(_state):
    torch.save(nn.Linear(2, 2), "weights.pt")


def write_missing(state):
    torch.save({name: value for name, value in state.items() if name != "4.bias"}, "weights.pt")


def write_more(state):
    torch.save({**state, "5.weight": torch.zeros(1)}, "weights.pt")


def write_shape(state):
    torch.save({**state, "0.weight": torch.zeros(4, 3, 7, 7)}, "weights.pt")


def write_wrapped(state):
    torch.save({f"module.{name}": value for name, value in state.items()}, "weights.pt")


def write_nested(state):
    torch.save({"epoch": 3, "state_dict": state}, "weights.pt")


def write_list(_state):
    torch.save([1, 2], "weights.pt")


def write_junk(_state):
    with open("weights.pt", "w") as file:  # noqa: PTH123
        file.write("junk")


def write_script(_state):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit is old, its files are still about
        torch.jit.script(nn.Linear(2, 2)).save("weights.pt")


def write_nothing(_state):
    pass


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            write_code,
            r"weights\.pt is refused: it is damaged or holds more than tensors, and loading that could",
        ),
        (write_model, r"weights\.pt is refused"),
        (write_missing, r"weights\.pt does not fit Sequential: it has no '4\.bias'$"),
        (write_more, r"does not fit Sequential: it has '5\.weight', which the network has not$"),
        (write_shape, r"it has '0\.weight' of shape \(4, 3, 7, 7\), the network of \(4, 3, 3, 3\)$"),
        (write_wrapped, r"and 12 more\. Its names begin with 'module\.': write the state_dict of the network inside$"),
        (write_nested, r"holds a dict with the keys epoch, state_dict; wanted tensors by name"),
        (write_list, r"holds <class 'list'>; wanted tensors by name"),
        (write_junk, r"weights\.pt cannot be read: error: unpack requires.*\. Wanted model\.state_dict\(\), in a"),
        (write_script, r"weights\.pt cannot be read: .*TorchScript archive"),
        (write_nothing, r"there is no file weights\.pt"),
    ],
)
def test_weights_that_do_not_do_are_one_line(run, tiny, tmp_path, write, message):
    write(tiny.with_norm().state_dict())
    with pytest.raises(SystemExit, match=message) as exited:
        run("fold", "tiny:with_norm", "--weights", "weights.pt", "--input", "2x3x8x8")
    assert "\n" not in str(exited.value.code)
    assert not (tmp_path / "ran").exists()


def test_many_faults_are_the_first_five(run, tiny):
    save_file(tiny.plain().state_dict(), "weights.safetensors")
    with pytest.raises(SystemExit, match=r"it has no 'conv1\.weight'; it has no 'bn1\.weight'.*; and \d+ more$"):
        run("fold", "torchvision.models:resnet18", "--weights", "weights.safetensors", "--input", "2x3x8x8")


# --- mistakes ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny"], "wanted MODULE:FACTORY, such as torchvision.models:resnet18; got 'tiny'"),
        (
            ["nowhere:net"],
            "cannot make nowhere:net: ModuleNotFoundError: No module named 'nowhere'. Install that package",
        ),
        (["tiny:nothing"], "cannot make tiny:nothing: AttributeError"),
        (
            ["tiny:wants"],
            r"cannot make tiny:wants: TypeError: wants\(\) missing 1 required positional.*name a function that",
        ),
        (["./tiny.py:plain"], "wanted MODULE:FACTORY, such as torchvision.models:resnet18; got './tiny.py:plain'"),
        (["tiny.py:plain"], "wanted MODULE:FACTORY, such as torchvision.models:resnet18; got 'tiny.py:plain'"),
        (["tiny:number"], "tiny:number gives a int; wanted a torch.nn.Module"),
        (["tiny:with_norm", "--input", "3"], "--input wants a shape with its batch axis, such as 1x3x224x224; got '3'"),
        (["tiny:with_norm", "--input", "1x-3x8"], "--input wants a shape.*got '1x-3x8'"),
        (
            ["tiny:with_norm", "--out", "out.pt"],
            r"out\.pt ends in '\.pt'; wanted a new file that ends in \.pt2 or \.onnx",
        ),
        (["tiny:with_norm", "--out", "."], r"\. is a folder; wanted a new file"),
        (["tiny:with_norm", "--out", "old.onnx"], r"old\.onnx is there already; give another name, or remove it"),
        (["tiny:with_norm", "--out", "no/out.pt2"], "there is no folder no"),
        (
            ["tiny:with_norm", "--input", "1x5x8x8"],
            "Sequential does not run on --input 1x5x8x8: .*to have 3 channels, but got 5",
        ),
    ],
)
def test_mistakes_are_one_line(run, arguments, message):
    arguments = arguments if "--input" in arguments else [*arguments, "--input", "2x3x8x8"]
    with pytest.raises(SystemExit, match=message) as exited:
        run("fold", *arguments)
    assert "\n" not in str(exited.value.code)


@pytest.mark.parametrize(
    ("suffix", "package"), [("onnx", "onnxscript"), ("onnx", "onnx"), ("safetensors", "safetensors")]
)
def test_without_the_extra_a_format_is_refused_before_the_work(run, monkeypatch, suffix, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(SystemExit, match=rf"\.{suffix} files need {package}: pip install 'batchnorm\[files\]'"):
        run("fold", "tiny:not_there_either", "--input", "2x3x8x8", "--out", f"out.{suffix}")


def test_a_network_that_cannot_be_written_is_one_line(run, monkeypatch):
    def fail(*_args, **_options):
        raise RuntimeError("no such operator\nand forty lines of advice")

    monkeypatch.setattr(torch.export, "export", fail)
    with pytest.raises(SystemExit, match=r"out\.pt2 cannot be written: RuntimeError: no such operator$"):
        run("fold", "tiny:with_norm", "--input", "2x3x8x8", "--out", "out.pt2")


# --- insert and recalibrate ---


def test_insert(run):
    output = run(
        "insert", "tiny:plain", "--input", "2x3x8x8", "--remove", "dropout", "--where", "4", "--out", "out.safetensors"
    )
    assert re.search(r"^3 +removed$", output, re.MULTILINE)
    assert re.search(r"^4 +inserted +4_bn +dropped", output, re.MULTILINE)
    assert re.search(r"^0 +skipped .* left out by where$", output, re.MULTILINE)
    norm = {f"4_bn.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}
    assert set(load_file("out.safetensors")) == {"0.weight", "0.bias", "4.weight"} | norm


def test_insert_keeps_the_function_on_data(run, tiny):
    output = run("insert", "tiny:plain", "--input", "2x3x8x8", "--data", "tiny:batches", "--out", "out.safetensors")
    assert re.search(r"largest relative error: \d\.\de[-+]\d\d$", output, re.MULTILINE)
    z = tiny.plain()[0](torch.cat(tiny.batches())).detach()
    assert_close(load_file("out.safetensors")["0_bn.bias"], z.mean((0, 2, 3)))


@pytest.mark.parametrize("estimator", ["pooled", "paper"])
def test_recalibrate(run, tiny, estimator):
    output = run(
        *("recalibrate", "tiny:with_norm", "--data", "tiny:batches", "--estimator", estimator),
        *("--out", "out.safetensors"),
    )
    assert re.search(r"^1 +recalibrated +540 ", output, re.MULTILINE)
    z = [tiny.with_norm()[0](x).detach().double().numpy() for x in tiny.batches()]
    if estimator == "paper":
        var = np.mean([each.var((0, 2, 3), ddof=1) for each in z], axis=0)
    else:
        var = np.concatenate(z).var((0, 2, 3), ddof=1)
    state = load_file("out.safetensors")
    np.testing.assert_allclose(state["1.running_var"].numpy(), var, rtol=1e-6)
    assert state["1.num_batches_tracked"] == 3


@pytest.mark.usefixtures("tiny")
def test_recalibrate_shows_its_progress(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["batchnorm", "recalibrate", "tiny:with_norm", "--data", "tiny:batches"])
    main.main()
    assert capsys.readouterr().err.splitlines() == [f"recalibrate: batch {done} of 3" for done in (1, 2, 3)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "tiny:number"], "tiny:number gives a int; wanted an iterable of batches"),
        (
            ["--data", "tiny:batches", "--out", "out.onnx"],
            r"out\.onnx ends in '\.onnx'; wanted a new file that ends in \.safetensors",
        ),
    ],
)
def test_mistakes_of_recalibrate(run, arguments, message):
    with pytest.raises(SystemExit, match=message):
        run("recalibrate", "tiny:with_norm", *arguments)


class Call(nn.Module):
    """A network that takes the next of `durations` on the clock."""

    def __init__(self, clock, durations):
        super().__init__()
        self.clock = clock
        self.durations = iter(durations)

    def forward(self, _x):
        self.clock.append(self.clock[-1] + next(self.durations))


def test_latencies_are_medians_after_a_warm_up(monkeypatch):
    clock = [0]
    monkeypatch.setattr(command.time, "perf_counter", lambda: clock[-1])
    models = [Call(clock, [100, 100, 100, 1, 9, 2]), Call(clock, [500, 500, 500, 30, 10, 20])]
    assert command.latencies(models, torch.zeros(1), rounds=3) == [2, 20]


def test_latencies_alternate():
    calls = []

    class Named(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def forward(self, _x):
            calls.append((self.name, torch.is_grad_enabled()))

    command.latencies([Named("a"), Named("b")], torch.zeros(1), rounds=4)
    assert calls == [("a", False), ("b", False)] * 7
