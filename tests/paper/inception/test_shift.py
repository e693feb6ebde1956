"""A look at why BN helps: its measures by hand, its records, and a stop in between."""

import sys
from threading import Event

import numpy as np
import pytest
import torch
from torch import nn

import batchnorm as bn
from batchnorm.cli.main import main
from batchnorm.paper.images.sources import open_both
from batchnorm.paper.inception.network import SMALL, Inception
from batchnorm.paper.inception.shift import experiment, measures
from batchnorm.paper.inception.shift.config import ShiftConfig
from batchnorm.paper.inception.shift.experiment import create_run, run_shift
from batchnorm.paper.inception.shift.measures import (
    Moments,
    dead_share,
    drift,
    find_layers,
    largest_stable_rate,
    observe,
)
from batchnorm.paper.inception.shift.records import DRIFTS, RATES, TRAININGS, read_shift
from batchnorm.paper.training.run import Run


def moments(mean, std, most=(1.0, 1.0)):
    return Moments(torch.tensor(mean), torch.tensor(std), torch.zeros(2), torch.tensor(most))


@pytest.fixture(params=[False, True], ids=["plain", "bn"])
def block(request):
    """Return a convolution of two maps with or without BN, and random images."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(1, 2, 3, bias=not request.param)
    if not request.param:
        return nn.Sequential(nn.Sequential(convolution, nn.ReLU(inplace=True))), torch.randn(8, 1, 5, 5)
    norm = bn.BatchNorm2d(2, activation="relu")
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, -0.5]))
        norm.bias.copy_(torch.tensor([0.25, -3.0]))
    return nn.Sequential(nn.Sequential(convolution, norm)), torch.randn(8, 1, 5, 5)


def test_moments_are_those_of_the_inputs_of_the_nonlinearity(block):
    network, images = block
    convolution, second = network[0]
    values = nn.functional.conv2d(images, convolution.weight, convolution.bias)
    if not isinstance(second, nn.ReLU):  # Alg. 1, with torch's own function
        values = nn.functional.batch_norm(values, None, None, second.weight, second.bias, training=True)
    maps = values.detach().double().numpy().swapaxes(0, 1).reshape(2, -1)
    found = observe(network, images).inputs[0]
    expected = (maps.mean(1), maps.std(1), maps.min(1), maps.max(1))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-5)  # the convolution is float32


def test_observing_changes_no_state(block):
    network, images = block
    network.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    observe(network, images)
    assert not network.training
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())


def test_drift_is_in_deviations_before():
    # The mean moves by 1/2 and 0/4 deviations: 0.25 on average. The spread by 2/2 and 1/4: 0.625.
    found = drift(moments([0.0, 5.0], [2.0, 4.0]), moments([1.0, 5.0], [4.0, 3.0]))
    assert found == (pytest.approx(0.25), pytest.approx(0.625))


def test_a_map_is_dead_if_nothing_is_above_0():
    assert dead_share(moments([0.0, 0.0], [1.0, 1.0], most=[0.0, 0.1])) == 0.5


@pytest.mark.parametrize(("curvature", "rate"), [(1.0, 2.0), (3.0, 0.5), (0.5, 4.0), (1000.0, 0.0)])
def test_the_largest_stable_rate_of_a_parabola(curvature, rate):
    # A step on a w^2 / 2 goes from w to (1 - rate a) w: it is stable up to the rate 2 / a. We try powers of two from
    # 1 / 64, and 2 / 1000 is below the first. At 2 / a the loss stays the same, up to rounding; 4 / 4 is exact.
    weight = nn.Parameter(torch.tensor([1.0]))

    def loss():
        return (curvature * weight**2 / 2).sum()

    loss().backward()
    assert largest_stable_rate(weight, lambda: loss().item()) == rate
    assert weight.item() == 1.0


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_layers_of_the_small_network_are_in_order(batch_norm):
    network = Inception(10, batch_norm=batch_norm, channels=3, size=32, width=1 / 8, modules=SMALL)
    names = [layer.name for layer in find_layers(network)]
    assert names[:6] == ["stem", "3c.0.0", "3c.0.1", "3c.1.0", "3c.1.1", "3c.1.2"]
    assert len(names) == 25
    assert all((layer.norm is not None) == batch_norm for layer in find_layers(network))


def shorten(patch):
    """Try few rates: they are tested above."""
    patch.setattr(experiment, "DOUBLINGS", 1)
    patch.setattr(measures, "DOUBLINGS", 1)


@pytest.fixture
def short(monkeypatch):
    shorten(monkeypatch)


@pytest.fixture(scope="module")
def images(tree):
    return open_both(tree)


@pytest.fixture(scope="module")
def config(tree):
    return ShiftConfig(tree, steps=4, every=2, rate_steps=20, lr=0.02, seeds=1)


@pytest.fixture(scope="module")
def looked(config, images, tmp_path_factory):
    """Measure both networks, and return the run."""
    run = create_run(config, images[0], tmp_path_factory.mktemp("shift") / "run")
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        assert run_shift(config, images, run, lambda _row: None, Event())
    return run


def test_both_networks_are_measured_at_equal_steps(looked):
    records = read_shift(looked.folder)
    for network in ("inception", "bn-baseline"):
        assert [row["step"] for row in records.drifts if row["network"] == network] == [2, 4]
        assert [row["step"] for row in records.rates if row["network"] == network] == [0, 2, 4]
        assert [row["lr"] for row in records.trainings if row["network"] == network] == [0.02]
    assert {len(row["mean"]) for row in records.drifts} == {len(records.layers)} == {25}
    assert all(("raw_mean" in row) == (row["network"] == "bn-baseline") for row in records.drifts)


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_a_stopped_look_continues_to_the_same_rows(looked, config, images, tmp_path):
    stop, run = Event(), create_run(config, images[0], tmp_path / "run")
    assert not run_shift(config, images, run, lambda row: stop.set() if row.get("loss") else None, stop)
    assert len(read_shift(run.folder).drifts) == 1
    assert run_shift(config, images, run, lambda _row: None, Event())
    for file in (DRIFTS, RATES, TRAININGS):
        assert (run.folder / file).read_text() == (looked.folder / file).read_text()


@pytest.mark.usefixtures("short")
def test_a_whole_look_is_not_measured_again(looked, config, images):
    rows = []
    assert run_shift(config, images, looked, rows.append, Event())
    assert rows == []


@pytest.mark.usefixtures("short")
@pytest.mark.filterwarnings("ignore:.*mean or variance is not finite:RuntimeWarning")  # as it should be
def test_a_rate_that_is_too_large_is_not_stable(config, images, tmp_path):
    large = ShiftConfig(**{**vars(config), "lr": 1e6})
    run = create_run(large, images[0], tmp_path / "run")
    assert run_shift(large, images, run, lambda _row: None, Event())
    records = read_shift(run.folder)
    assert [row["stable"] for row in records.trainings] == [False, False]
    assert records.drifts[-1]["network"] == "bn-baseline"


def test_a_run_of_another_experiment_is_an_error(tmp_path):
    Run.create(tmp_path / "run", "mnist", {})
    with pytest.raises(bn.BatchNormError, match="is a run of 'mnist'; wanted one of batchnorm shift"):
        read_shift(tmp_path / "run")


def test_names_of_layers_that_are_none_are_an_error(tmp_path):
    Run.create(tmp_path / "run", "shift", {"layers": [1]})
    with pytest.raises(bn.BatchNormError, match=r"config.json: layers must be a list of names; got \[1\]"):
        read_shift(tmp_path / "run")


def shift(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["batchnorm", "shift", *map(str, arguments)])
    main()


@pytest.mark.usefixtures("short")
def test_the_command_draws_and_prints_what_was_measured(looked, monkeypatch, capsys):
    shift(monkeypatch, "--resume", looked.folder)
    assert {"shift.png", "shift.svg"} <= {path.name for path in looked.folder.iterdir()}
    assert "drift of the mean a step" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the images: --data FOLDER, fashion or cifar10"),
        (["--data", "nowhere"], "--data nowhere is not a folder"),
        (["--resume", "run", "--steps", "9"], "--resume run continues with that run's own settings"),
    ],
    ids=["no data", "no folder", "settings"],
)
def test_a_wrong_command_line_is_one_line(arguments, message, monkeypatch):
    with pytest.raises(SystemExit, match=message):
        shift(monkeypatch, *arguments)
