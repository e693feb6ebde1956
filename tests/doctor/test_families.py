"""Faults in networks of other families than the bank's, and healthy ones that look ill: rows, sequences, volumes."""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from timm.layers.norm_act import BatchNormAct2d
from torch import nn

import batchnorm as bn


class Case(NamedTuple):
    """What the doctor gets, and the layers that it must name."""

    model: nn.Module
    batches: list[Any]
    where: tuple[str, ...] = ()
    options: Mapping[str, Any] = MappingProxyType({})


Plant = Callable[[], Iterator[Case]]
FAULTS: list[Any] = []
HEALTHY: list[Any] = []


def fault(check: str, severity: str = "warning") -> Callable[[Plant], Plant]:
    """Put a fault into the table, under the check that must find it, and how bad it must be."""

    def add(plant: Plant) -> Plant:
        FAULTS.append(pytest.param(check, severity, plant, id=plant.__name__))
        return plant

    return add


def healthy(plant: Plant) -> Plant:
    """Put a network into the table that must give no error and no warning."""
    HEALTHY.append(pytest.param(plant, id=plant.__name__))
    return plant


@pytest.mark.parametrize(("check", "severity", "plant"), FAULTS)
def test_a_fault_is_found_and_mended(check, severity, plant):
    torch.manual_seed(0)
    cases = plant()
    ill = next(cases)
    found = [f for f in bn.doctor(ill.model, ill.batches, **ill.options).findings if f.check == check]
    assert [(f.severity, f.layers) for f in found] == [(severity, ill.where)]
    mended = next(cases)
    found = [f for f in bn.doctor(mended.model, mended.batches, **mended.options).findings if f.check == check]
    assert found == []


@pytest.mark.parametrize("plant", HEALTHY)
def test_a_healthy_network_is_healthy(plant):
    torch.manual_seed(0)
    for case in plant():
        findings = bn.doctor(case.model, case.batches, **case.options).findings
        assert [f for f in findings if f.severity != "note"] == []


def rows(seed: int, count: int = 8, examples: int = 32) -> list[Any]:
    """Return batches of (rows of six features, labels)."""
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(examples, 6, generator=generator) * 2 + 1 for _ in range(count)]
    return [(x, (x[:, 0] > 1).long()) for x in inputs]


def sequences(seed: int, count: int = 8) -> list[Any]:
    """Return batches of sequences of 20 positions, (16, 4, 20)."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(16, 4, 20, generator=generator) for _ in range(count)]


def mlp() -> nn.Sequential:
    layers = [nn.Linear(6, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU()]
    layers += [nn.Linear(16, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(16, 2))


def calibrated(model: nn.Module, batches: list[Any] | None = None) -> nn.Module:
    bn.recalibrate(model, rows(1, 12) if batches is None else batches)
    return model.eval()


def count(model: nn.Module, batches: dict[str, int]) -> None:
    for name, number in batches.items():
        model.get_buffer(f"{name}.num_batches_tracked").fill_(number)


def adam_after(model: nn.Module, steps: int) -> torch.optim.Optimizer:
    """Return an optimizer that has made some steps. They change nothing."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    return optimizer


class Lambda(nn.Module):
    """Call a function on the module inside and the inputs."""

    def __init__(self, function: Callable[..., Any], inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self.inner, *args, **kwargs)


# The proof


@fault("eval against training", "error")
def a_loss_of_outputs_that_are_no_numbers():
    model = Lambda(lambda inner, x: inner(x).argmax(1), calibrated(mlp())).eval()
    batches = [(x, model(x)) for x, _ in rows(3)]
    model.inner.get_buffer("1.running_mean").add_(20)
    options = {"loss": lambda output, target: (output != target).float().mean()}
    yield Case(model, batches, ("inner.1",), options)
    yield Case(calibrated(model), batches, (), options)


@fault("eval against training", "error")
def volumes_in_batches_of_one():
    batches = [[torch.randn(1, 1, 8, 8, 8) for _ in range(n)] for n in (20, 12)]
    model = nn.Sequential(nn.Conv3d(1, 6, 3), nn.BatchNorm3d(6), nn.ReLU(), nn.Conv3d(6, 2, 1))
    calibrated(model, batches[0]).get_buffer("1.running_mean").add_(3)
    yield Case(model, batches[1], ("1",))
    yield Case(calibrated(model, batches[0]), batches[1])


# Numbers


@fault("eps")
def an_eps_of_zero():
    model = calibrated(mlp())
    model[1].eps = 0.0  # pyright: ignore[reportIndexIssue]
    yield Case(model, rows(3), ("1",))
    model[1].eps = 1e-5  # pyright: ignore[reportIndexIssue]
    yield Case(model, rows(3))


@fault("eps", "note")
def an_eps_that_swamps_some_channels():
    model = mlp()
    model[0].weight.data[:5] *= 1e-5  # pyright: ignore[reportIndexIssue]
    yield Case(calibrated(model), rows(3), ("1",))
    model[0].weight.data[:5] *= 1e5  # pyright: ignore[reportIndexIssue]
    yield Case(calibrated(model), rows(3))


@fault("resolution")
def a_time_stamp_that_float32_rounds():
    def stamped(batches):
        return [torch.cat([x[:, :5], x[:, 5:] * 10 + 1.7e9], 1) for x, _ in batches]

    model = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 2))
    yield Case(calibrated(model, stamped(rows(1))), stamped(rows(3)), ("0",))
    yield Case(calibrated(model), rows(3))


# Counting and freezing


@fault("counted twice")
def micro_batches_under_sgd_with_its_steps_written_into_it():
    model = calibrated(mlp())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.param_groups[0]["step"] = 10
    count(model, {"1": 40, "4": 40})
    yield Case(model, rows(3), ("1", "4"), {"optimizer": optimizer})
    count(model, {"1": 10, "4": 10})
    yield Case(model, rows(3), (), {"optimizer": optimizer})


@fault("counted twice", "note")
def forwards_without_a_step():
    model = calibrated(mlp())
    optimizer = adam_after(model, 20)
    count(model, {"1": 26, "4": 26})
    yield Case(model, rows(3), ("1", "4"), {"optimizer": optimizer})
    count(model, {"1": 20, "4": 20})
    yield Case(model, rows(3), (), {"optimizer": optimizer})


@healthy
def a_network_trained_before():
    """31 batches a step are within 2 % of a whole number."""
    model = calibrated(mlp())
    optimizer = adam_after(model, 40)
    count(model, {"1": 1235, "4": 1235})
    yield Case(model, rows(3), (), {"optimizer": optimizer})


@healthy
def a_new_layer_behind_old_ones():
    model = calibrated(mlp())
    count(model, {"1": 1041, "4": 21})
    yield Case(model, rows(3))
    count(model, {"1": 5040, "4": 40})
    yield Case(model, rows(3))


@fault("half frozen")
def statistics_without_gamma_move_in_a_frozen_part():
    model = nn.Sequential(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, affine=False)), nn.Linear(8, 2))
    calibrated(model).train()[0].requires_grad_(False)  # pyright: ignore[reportIndexIssue]
    yield Case(model, rows(3), ("0.1",))
    bn.freeze(model[0])
    yield Case(model, rows(3))


# Channels


@fault("dead channels", "note")
def a_constant_input_that_rounding_moves():
    model = mlp()
    model[0].weight.data[5] = 0  # pyright: ignore[reportIndexIssue]
    model[0].bias = nn.Parameter(torch.full((16,), 1000.1))  # pyright: ignore[reportIndexIssue]
    batches = rows(3) + rows(4, 1, examples=13)
    yield Case(calibrated(model), batches, ("1",))
    model[0].weight.data[5] = 1  # pyright: ignore[reportIndexIssue]
    yield Case(calibrated(model), batches)


@fault("dead channels")
def a_maximum_between_the_norm_and_its_activation():
    model = nn.Sequential(nn.Conv1d(4, 8, 3, bias=False), nn.BatchNorm1d(8), nn.MaxPool1d(2), nn.ReLU())
    model[1].bias.data[2] = -100  # pyright: ignore[reportIndexIssue]
    yield Case(calibrated(model, sequences(1)), sequences(3), ("1",))
    model[1].bias.data[2] = 0  # pyright: ignore[reportIndexIssue]
    yield Case(calibrated(model, sequences(1)), sequences(3))


@fault("dead channels")
def a_beta_out_of_reach_of_the_activation_inside():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), BatchNormAct2d(8), nn.Conv2d(8, 2, 1))
    model[1].bias.data[2] = -500  # pyright: ignore[reportIndexIssue]
    batches = [torch.randn(8, 3, 8, 8) for _ in range(8)]
    yield Case(calibrated(model, batches), batches, ("1",))
    model[1].bias.data[2] = 0  # pyright: ignore[reportIndexIssue]
    yield Case(calibrated(model, batches), batches)


@fault("gamma", "note")
def the_only_gammas_explode():
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    nn.init.constant_(model[1].weight, 200)  # pyright: ignore[reportArgumentType]
    yield Case(calibrated(model), rows(3), ("1",))
    nn.init.ones_(model[1].weight)  # pyright: ignore[reportArgumentType]
    yield Case(calibrated(model), rows(3))


@fault("gamma")
def all_gammas_vanish():
    model = mlp()
    for name in ("1", "4"):
        nn.init.constant_(model.get_parameter(f"{name}.weight"), 1e-4)
    yield Case(calibrated(model), rows(3), ("1", "4"))
    for name in ("1", "4"):
        nn.init.ones_(model.get_parameter(f"{name}.weight"))
    yield Case(calibrated(model), rows(3))


# Inference and batches


@fault("leak", "error")
def a_leak_beside_an_input_of_another_size():
    options = {"x": [x for x, _ in rows(3)], "scale": torch.ones(6)}
    batches = [{"x": x, "scale": options["scale"]} for x in options["x"]]
    model = Lambda(lambda inner, x, scale: inner(x * scale) - x.mean(), calibrated(mlp())).eval()
    yield Case(model, batches)
    model.function = lambda inner, x, scale: inner(x * scale)
    yield Case(model, batches)


def detected(inner: nn.Module, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Take images of several sizes as detection networks do, and return a dict an image, of as many boxes as it has."""
    square = torch.stack([F.interpolate(image[None], 8)[0] for image in images])
    return [{"boxes": found[:, found[0] > 0].T} for found in inner(square).flatten(2)]


def pictures_in_lists(seed: int, count: int = 4) -> list[Any]:
    """Return batches of ([picture, ...], targets), each picture of another width."""
    generator = torch.Generator().manual_seed(seed)
    return [([torch.randn(3, 8, 8 + n, generator=generator) for n in range(5)], [{}] * 5) for _ in range(count)]


@fault("leak", "error")
def a_leak_between_the_images_of_a_list():
    layers = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
    model = Lambda(detected, calibrated(layers, [torch.randn(8, 3, 8, 8)])).eval()
    layers[1] = nn.BatchNorm2d(4, track_running_stats=False)
    yield Case(model, pictures_in_lists(3), ("inner.1",))
    layers[1] = nn.BatchNorm2d(4).eval()
    yield Case(model, pictures_in_lists(3))


@fault("leak", "error")
def a_leak_beside_a_list_of_two_inputs():
    batches = [([x, x * 2], labels) for x, labels in rows(3)]
    model = Lambda(lambda inner, pair: inner(pair[0] + pair[1]) - pair[0].mean(), calibrated(mlp())).eval()
    yield Case(model, batches)
    model.function = lambda inner, pair: inner(pair[0] + pair[1])
    yield Case(model, batches)


@healthy
def sequences_with_the_length_in_front():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.recurrent, self.norm = nn.GRU(4, 8), nn.BatchNorm1d(8)

        def forward(self, x):
            return self.norm(self.recurrent(x)[0].permute(1, 2, 0)).permute(2, 0, 1)

    batches = [[x.permute(2, 0, 1) for x in sequences(seed)] for seed in (1, 3)]
    yield Case(calibrated(Recurrent(), batches[0]), batches[1])


def by_row(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Normalize sequences (N, C, L) as rows (N L, C)."""
    return norm(x.transpose(1, 2).reshape(-1, x.shape[1]))


@fault("padding")
def padding_in_rows():
    padded = sequences(3)
    for x in padded:
        for each, length in zip(x, torch.randint(5, 18, (len(x),)), strict=True):
            each[:, length:] = 0
    model = Lambda(by_row, nn.BatchNorm1d(4))
    yield Case(calibrated(model, padded), padded, ("inner",))
    yield Case(calibrated(model, sequences(1)), sequences(3))


@healthy
def rows_of_a_few_categories():
    batches = [[F.one_hot(torch.randint(3, (64,)), 3).float() for _ in range(10)] for _ in range(2)]
    model = nn.Sequential(nn.Linear(3, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    yield Case(calibrated(model, batches[0]), batches[1])


@healthy
def features_that_are_seldom_there():
    """One of five examples in a thousand: whole sets have none."""
    chances = torch.tensor([0.002, 0.005, 0.01, 0.02, 0.05, 0.1])
    for _ in range(3):
        sets = [[(torch.rand(32, 6) < chances).float() for _ in range(10)] for _ in range(3)]
        model = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 2))
        yield Case(calibrated(model, sets[0]), sets[1], (), {"eval_batches": sets[2]})


@fault("data shift")
def a_frozen_network_sees_other_data():
    model = bn.freeze(calibrated(mlp())).model
    eval_batches = [(x * 0.5 - 2, labels) for x, labels in rows(4)]
    yield Case(model, rows(3), ("1", "4"), {"eval_batches": eval_batches})
    yield Case(model, rows(3), (), {"eval_batches": rows(4)})


# Structure


@fault("redundant bias", "note")
def a_linear_bias_moved_to_the_channels():
    linear = nn.Linear(4, 8)

    def forward(inner, x):
        return inner[1](inner[0](x.transpose(1, 2)).transpose(1, 2))

    model = Lambda(forward, nn.Sequential(linear, nn.BatchNorm1d(8)))
    yield Case(calibrated(model, sequences(1)), sequences(3), ("inner.1",))
    linear.register_parameter("bias", None)
    yield Case(calibrated(model, sequences(1)), sequences(3))


@fault("normalized twice", "note")
def a_layer_norm_moved_to_the_channels():
    def forward(inner, x):
        return inner[1](inner[0](x.transpose(1, 2)).transpose(1, 2))

    model = Lambda(forward, nn.Sequential(nn.LayerNorm(4), nn.BatchNorm1d(4)))
    yield Case(calibrated(model, sequences(1)), sequences(3), ("inner.1",))
    model.set_submodule("inner.0", nn.Identity())
    yield Case(calibrated(model, sequences(1)), sequences(3))


@fault("last layer", "note")
def a_norm_before_the_softmax():
    model = nn.Sequential(mlp(), nn.BatchNorm1d(2), nn.LogSoftmax(1))
    yield Case(calibrated(model), rows(3), ("1",))
    model[1] = nn.Identity()
    yield Case(calibrated(model), rows(3))


def test_batches_stay_as_they_are():
    """The network writes into its input."""
    batches = rows(3)
    bn.doctor(Lambda(lambda inner, x: inner(x.mul_(2)), mlp()), batches)
    assert all(torch.equal(x, before) for (x, _), (before, _) in zip(batches, rows(3), strict=True))


def test_a_bias_that_is_not_one_number_per_channel_is_not_redundant():
    """Each of 9 positions of a map has a bias of its own."""
    model = nn.Sequential(nn.Linear(6, 36), nn.Unflatten(1, (4, 3, 3)), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    checks = [finding.check for finding in bn.doctor(calibrated(model), rows(3)).findings]
    assert "redundant bias" not in checks


def test_a_network_that_wants_targets_in_training_is_examined_without_noise():
    """Torchvision's detection networks raise without targets."""

    class Detector(Lambda):
        def forward(self, images):
            assert not self.training, "targets should not be none"
            return super().forward(images)

    layers = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
    model = Detector(detected, calibrated(layers, [torch.randn(8, 3, 8, 8)])).eval()
    result = bn.doctor(model, pictures_in_lists(3))
    assert any(line.startswith("Noise in training was not examined: Detector does not") for line in result.unexamined)
    assert any(line.startswith("A training step was not examined") for line in result.unexamined)


def test_steps_that_the_optimizer_does_not_count_are_told():
    model = calibrated(mlp())
    result = bn.doctor(model, rows(3), optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    assert result.unexamined == (
        "Batches per step were not examined: SGD does not count its steps, or has made none. Write them into it: "
        'optimizer.param_groups[0]["step"] = steps',
    )
