"""`bn.doctor` as a whole: it changes nothing, keeps few batches, refuses what it cannot examine, and escapes names."""

import copy
import re

import pytest
import torch
from support.patients import LOSS, fit, pictures, plain, recalibrated, trained
from torch import nn
from torch.utils.checkpoint import checkpoint

import batchnorm as bn
from batchnorm.diagnosis.measurement import HELD, measure


def everything(model):
    """Return all that the doctor must leave: tensors, modes, gradients and hooks."""
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [
        (module.training, len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()
    ]
    return tensors, modes, [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("training", [True, False])
def test_the_model_and_the_random_numbers_stay_as_they_are(training):
    model = trained("plain").model.train(training)
    tensors, modes, gradients = everything(model)
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    bn.doctor(model, pictures(3, 3), loss=LOSS, eval_batches=pictures(4, 2))
    assert torch.equal(torch.rand(3), wanted)
    after = everything(model)
    assert all(torch.equal(tensors[name], after[0][name]) for name in tensors)
    assert modes == after[1]
    assert all(one is other for one, other in zip(gradients, after[2], strict=True))


def test_the_statistics_are_those_that_recalibrate_writes():
    """Two ways to the same sums: the rows' shift from statistics that `bn.recalibrate` wrote is rounding."""
    model = trained("residual").model
    bn.recalibrate(model, pictures(3, 4))
    rows = bn.doctor(model, pictures(3, 4)).rows
    assert max(row.mean_shift or 0 for row in rows) < 1e-5
    assert max(abs((row.std_high or 1) - 1) for row in rows) < 1e-5


def test_no_more_than_a_few_batches_are_kept():
    model = recalibrated("plain").model
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.BatchNorm2d)}
    measurement = measure(model, layers, set(), iter(pictures(3, 9, examples=4)))  # pyright: ignore[reportArgumentType]
    assert measurement.batches == 9
    assert len(measurement.held) == HELD
    assert measurement.layers["1"].means.examples.count == 36


def test_batches_may_come_once():
    assert bn.doctor(recalibrated("plain").model, iter(pictures(3, 3))).batches == 3


@pytest.mark.parametrize(
    ("model", "batches", "message"),
    [
        (nn.Linear(3, 3), [torch.randn(4, 3)], "Linear has no BatchNorm layer: nothing to examine"),
        (nn.BatchNorm1d(3), [], "doctor got no batch"),
        (nn.BatchNorm1d(3), torch.randn(4, 3), r"wanted an iterable of batches; got one Tensor"),
        (nn.LazyBatchNorm1d(), [torch.randn(4, 3)], "is a lazy layer"),
        (nn.BatchNorm1d(3), [torch.randn(4, 5)], r"BatchNorm1d does not run on a batch of \(4, 5\)"),
    ],
    ids=["no BN", "no batch", "one batch", "lazy", "another shape"],
)
def test_what_cannot_be_examined_is_refused(model, batches, message):
    with pytest.raises(bn.BatchNormError, match=message):
        bn.doctor(model, batches)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (nn.CrossEntropyLoss(), r"the loss does not run on an output of \(16, 3\) .* and a target of \(16, 5\)"),
        (lambda output, _: output, r"the loss does not run on an output of .* returns one number"),
    ],
    ids=["other targets", "no number"],
)
def test_a_loss_that_does_not_run_is_refused(loss, message):
    with pytest.raises(bn.BatchNormError, match=message):
        bn.doctor(nn.BatchNorm1d(3), [(torch.randn(16, 3), torch.randn(16, 5))], loss=loss)


def test_findings_and_rows_agree_and_come_worst_first():
    patient = recalibrated("plain")
    norm = patient.model.get_submodule(patient.first)
    norm.running_mean += 5  # pyright: ignore[reportOperatorIssue]
    norm.weight.data[0] = 0  # pyright: ignore[reportIndexIssue]
    result = bn.doctor(patient.model, pictures(3, 4), loss=LOSS)
    order = [("error", "warning", "note").index(finding.severity) for finding in result.findings]
    assert order == sorted(order)
    row = next(row for row in result.rows if row.name == patient.first)
    assert row.outcome == "error"
    assert "stale statistics" in row.reason
    assert "dead channels" in row.reason
    assert (result.errors, result.healthy) == (2, False)


def test_wrappers_are_opened():
    patient = recalibrated("plain")
    result = bn.doctor(nn.DataParallel(patient.model), pictures(3, 3))
    assert [row.name for row in result.rows] == ["1", "4", "7"]


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(2, momentum=0.9), bn.BatchNorm1d(2, momentum=0.9)])
@pytest.mark.parametrize("training", [True, False])
def test_a_bare_layer_is_named_by_its_class(layer, training):
    batches = [torch.randn(32, 2) + 9 for _ in range(3)]
    result = bn.doctor(layer.train(training), batches, optimizer=torch.optim.SGD(layer.parameters(), 0.1, 0, 0, 0.1))
    assert {finding.layers for finding in result.findings} <= {("BatchNorm1d",), ()}
    assert [row.name for row in result.rows] == ["BatchNorm1d"]
    assert {"stale statistics", "momentum", "weight decay"} <= {finding.check for finding in result.findings}
    assert all("BatchNorm1d" in finding.evidence for finding in result.findings)


def test_frozen_layers_are_not_compared_with_the_data():
    """A network that trains with frozen statistics is the same in eval: nothing to mend."""
    patient = recalibrated("plain")
    patient.model.get_submodule(patient.first).running_var *= 4  # pyright: ignore[reportOperatorIssue]
    bn.freeze(patient.model)
    assert bn.doctor(patient.model.train(), pictures(3, 3), loss=LOSS).healthy


def test_a_network_that_cannot_be_traced_is_examined_without_its_graph():
    class Untraceable(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x):
            return self.norm(x) if float(x.sum()) != 1.5 else x

    result = bn.doctor(Untraceable(), [torch.randn(32, 3) + 4 for _ in range(3)])
    assert result.findings[0].check in ("eval against training", "stale statistics")
    assert len(result.unexamined) == 1
    assert result.unexamined[0].startswith("The structure was not examined: Untraceable cannot be traced")


def test_dicts_and_detection_lists_are_batches():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, *, x, scale):
            return self.norm(x) * scale

    batches = [{"x": torch.randn(16, 3), "scale": torch.ones(16, 1)} for _ in range(3)]
    assert bn.doctor(Named().eval(), batches).batches == 3


def test_names_are_escaped_where_they_are_printed():
    model = nn.Sequential()
    model.add_module("bad\x1b[31m<b>", nn.BatchNorm1d(2))
    result = bn.doctor(model, [torch.randn(32, 2) + 9 for _ in range(3)])
    assert "\x1b" not in str(result)
    assert r"bad\x1b[31m<b>" in str(result)


def test_a_trained_network_whose_statistics_lag_is_told_by_how_much():
    model = fit(plain(), pictures(1, 3), lr=0.3).eval()
    finding = next(f for f in bn.doctor(model, pictures(3, 4)).findings if f.check == "stale statistics")
    assert re.search(r"\d+ of \d+ channels off, mean by up to [\d.]+ std", finding.evidence)


def test_dead_by_proof_is_a_warning_and_dead_on_these_data_a_note():
    patient = recalibrated("plain")
    norm = patient.model.get_submodule(patient.first)
    seen, proved = copy.deepcopy(patient.model), patient.model
    seen.get_submodule(patient.first).bias.data[0] = -9 * norm.weight[0].abs().item()  # pyright: ignore[reportIndexIssue]
    norm.bias.data[0] = -1000  # pyright: ignore[reportIndexIssue]
    severity = {
        name: [f.severity for f in bn.doctor(model, pictures(3, 3)).findings if f.check == "dead channels"]
        for name, model in (("seen", seen), ("proved", proved))
    }
    assert severity == {"seen": ["note"], "proved": ["warning"]}


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_and_sharing_are_told_apart(reentrant):
    class Checkpointed(nn.Sequential):
        def forward(self, input):
            return checkpoint(super().forward, input.requires_grad_(), use_reentrant=reentrant)

    inner = Checkpointed(nn.Linear(3, 4), nn.BatchNorm1d(4))
    shared = nn.BatchNorm1d(4)
    model = nn.Sequential(inner, shared, nn.ReLU(), shared, nn.Linear(4, 2))
    found = {
        f.layers: f.evidence for f in bn.doctor(model, [torch.randn(16, 3)]).findings if f.check == "counted twice"
    }
    assert found == {
        ("0.1",): "0.1: one step counts 2 batches, as the backward calls it again",
        ("1",): "1: one forward calls it 2 times",
    }


def test_layers_of_this_package_count_once_under_checkpointing():
    class Checkpointed(nn.Sequential):
        def forward(self, input):
            return checkpoint(super().forward, input, use_reentrant=False)

    model = nn.Sequential(Checkpointed(nn.Linear(3, 4), bn.BatchNorm1d(4)), nn.Linear(4, 2))
    checks = [finding.check for finding in bn.doctor(model, [torch.randn(16, 3)]).findings]
    assert "counted twice" not in checks


@pytest.mark.parametrize(("residual", "severity"), [(True, "note"), (False, "warning")])
def test_a_branch_that_starts_at_zero_is_no_fault(residual, severity):
    """Residual networks start with gamma 0 before the addition; an activation may stand between (timm's darknets)."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch = nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4), nn.SiLU())
            self.after = nn.Linear(4, 2)
            nn.init.zeros_(self.branch.get_parameter("1.weight"))

        def forward(self, x):
            return self.after(self.branch(x) + x if residual else self.branch(x))

    found = [f for f in bn.doctor(Block(), [torch.randn(32, 4)]).findings if f.check == "dead channels"]
    assert [(f.severity, f.layers) for f in found] == [(severity, ("branch.1",))]


@pytest.mark.parametrize(("share", "severity"), [(0.96, "note"), (0.995, "warning")])
def test_an_eps_that_leaves_a_tenth_of_the_spread_is_a_warning(share, severity):
    """Torchvision's EfficientNets begin with shares of 96 %, and train."""
    var = 1e-5 * (1 - share) / share
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(64, 4, generator=generator) * var**0.5 for _ in range(4)]
    result = bn.doctor(nn.Sequential(nn.BatchNorm1d(4)), batches)
    assert [finding.severity for finding in result.findings if finding.check == "eps"] == [severity]


class Drifts(nn.Module):
    """Add another number to the first channels of each batch."""

    def __init__(self, channels):
        super().__init__()
        self.channels = channels

    def forward(self, x):
        return torch.cat([x[:, : self.channels] + 2 * x[0, -1], x[:, self.channels :]], dim=1)


@pytest.mark.parametrize(("channels", "found"), [(1, []), (8, [("2",)])])
def test_a_channel_of_a_later_layer_is_too_few_for_sorted_batches(channels, found):
    """The examples of a batch share the noise of the statistics before. timm's repvit_m1 has such a channel."""
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(16, 64, generator=generator) for _ in range(6)]
    model = nn.Sequential(nn.BatchNorm1d(64), Drifts(channels), nn.BatchNorm1d(64))
    result = bn.doctor(model, batches)
    assert [finding.layers for finding in result.findings if finding.check == "sorted batches"] == found
