"""Compare recalibrated statistics with numpy on the same values (Algorithm 2, line 10)."""

import copy
import io
import json
import os
import re
import sys
from datetime import timedelta
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from support.commands import run_ranks
from torch import nn
from torch.optim.swa_utils import AveragedModel

import batchnorm as bn
from batchnorm.errors import PeerError
from batchnorm.graph.batches import run_batch

# Statistics are sums in double, stored as float32: half a unit in the last place (6e-8), and a little for the norm.
FLOAT32 = 2e-7
STATISTICS = ("running_mean", "running_var")


def data(n, c=4, scale=3.0, shift=2.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, c, generator=generator) * scale + shift


def numpy_statistics(x):
    x = np.asarray(x, dtype=np.float64)
    axes = tuple(i for i in range(x.ndim) if i != 1)
    return x.mean(axes), x.var(axes, ddof=1)


def assert_statistics(layer, mean, var, rtol=FLOAT32):
    running_mean, running_var = (layer.state_dict()[name].double().numpy() for name in STATISTICS)
    np.testing.assert_allclose(running_mean, mean, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(running_var, var, rtol=rtol)


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_state(model, before):
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


class Net(nn.Module):
    """Two BN layers with Dropout between them."""

    def __init__(self):
        super().__init__()
        self.bn1 = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(4, 3)
        self.bn2 = nn.BatchNorm1d(3)

    def forward(self, x):
        return self.bn2(self.fc(self.drop(self.bn1(x))))


@pytest.fixture
def net():
    torch.manual_seed(0)
    model = Net()
    model(data(32))  # statistics that are not the initial ones
    return model


# --- the two estimators ---


@pytest.mark.parametrize("sizes", [(60,), (20, 20, 20), (7, 33, 20), (2, 58)])
def test_pooled_statistics_are_those_of_all_values(sizes):
    x = data(60)
    model = nn.BatchNorm1d(4)
    bn.recalibrate(model, x.split(sizes))
    assert_statistics(model, *numpy_statistics(x))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.BatchNorm1d, (6, 3, 5)), (nn.BatchNorm2d, (6, 3, 4, 5)), (nn.BatchNorm3d, (6, 3, 2, 4, 5))],
)
def test_positions_of_a_feature_map_are_pooled(layer, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    model = layer(3)
    bn.recalibrate(model, x.split(2))
    assert_statistics(model, *numpy_statistics(x))


@pytest.mark.parametrize("sizes", [(20, 20, 20), (7, 33, 20)])
def test_paper_estimator_averages_the_batches_alike(sizes):
    batches = data(60).split(sizes)
    model = nn.BatchNorm1d(4)
    bn.recalibrate(model, batches, estimator="paper")
    each = [numpy_statistics(b) for b in batches]
    assert_statistics(model, np.mean([m for m, _ in each], axis=0), np.mean([v for _, v in each], axis=0))


def test_mean_300_with_standard_deviation_005_keeps_its_variance():
    x = 300 + 0.05 * data(4000, shift=0.0, scale=1.0)
    model = nn.BatchNorm1d(4)
    bn.recalibrate(model, x.split(100))
    assert_statistics(model, *numpy_statistics(x))
    assert model.state_dict()["running_var"].numpy() == pytest.approx(0.0025, rel=0.1)


def test_bfloat16_network_gets_the_mean_that_averaging_in_bfloat16_misses():
    model = nn.BatchNorm1d(4).bfloat16()
    x = (100 + data(512, shift=0.0, scale=1.0)).bfloat16()
    bn.recalibrate(model, x.split(32))
    mean, var = numpy_statistics(x.float())
    assert_statistics(model, mean, var, rtol=2**-8)  # one rounding to bfloat16


def test_deeper_layers_see_what_batch_normalization_of_each_batch_gives_them(net):
    batches = data(48, seed=3).split(16)
    bn.recalibrate(net, batches)
    inputs = []
    for batch in batches:
        x = batch.double().numpy()
        weight, bias = (p.detach().double().numpy() for p in net.fc.parameters())
        inputs.append((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) @ weight.T + bias)
    # The forward itself is float32: a few roundings of values near 1.
    assert_statistics(net.bn2, *numpy_statistics(np.concatenate(inputs)), rtol=3e-6)


# --- what runs in which mode, and what is restored ---


def test_dropout_stays_off(net):
    net.train()
    batches = data(64).split(16)
    bn.recalibrate(net, batches)
    first = snapshot(net)
    bn.recalibrate(net, batches)
    assert_same_state(net, first)


def test_batch_normalization_runs_on_the_batch(net):
    means = []
    net.bn1.register_forward_hook(lambda _m, _i, out: means.append(out.mean(0)))
    bn.recalibrate(net.eval(), data(32, shift=50.0).split(16))
    assert all(mean.abs().max() < 1e-5 for mean in means)


@pytest.mark.parametrize("training", [True, False])
def test_modes_momentum_and_hooks_are_restored(net, training):
    net.train(training)
    net.fc.train(not training)
    net.bn1.momentum = None
    modes = [m.training for m in net.modules()]
    hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in net.modules()]
    bn.recalibrate(net, [data(16)])
    assert [m.training for m in net.modules()] == modes
    assert [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in net.modules()] == hooks
    assert net.bn1.momentum is None
    assert net.bn2.momentum == 0.1


def test_statistics_are_written_into_the_buffers_the_network_has(net):
    before = {name: value.data_ptr() for name, value in net.named_buffers()}
    bn.recalibrate(net, [data(16)])
    assert {name: value.data_ptr() for name, value in net.named_buffers()} == before


def test_parameters_and_gradients_are_untouched(net):
    net(data(16)).square().sum().backward()
    before = [(p.clone(), copy.deepcopy(p.grad)) for p in net.parameters()]
    bn.recalibrate(net, [data(16)])
    for p, (value, grad) in zip(net.parameters(), before, strict=True):
        assert torch.equal(p, value)
        assert p.grad is not None
        assert grad is not None
        assert torch.equal(p.grad, grad)


def failing_batches():
    yield data(16)
    raise OSError("disk")


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        (failing_batches(), OSError, "disk"),
        ([data(16), data(16, c=5)], bn.BatchNormError, r"Net does not run on a batch of \(16, 5\).*\. Give a shape"),
        ([data(16), {"y": data(16)}], bn.BatchNormError, r"Net does not run on a batch of .*unexpected keyword.* 'y'"),
        ([data(16), "text"], bn.BatchNormError, "cannot tell the input of a batch of type str"),
    ],
    ids=["iterator", "shape", "keyword", "kind"],
)
def test_an_exception_leaves_the_old_statistics_whole_and_restores_the_rest(net, batches, error, message):
    before, modes = snapshot(net), [m.training for m in net.modules()]
    net.bn1.momentum = 0.3
    with pytest.raises(error, match=message):
        bn.recalibrate(net, batches)
    assert_same_state(net, before)
    assert [m.training for m in net.modules()] == modes
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in net.modules())
    assert (net.bn1.momentum, net.bn2.momentum) == (0.3, 0.1)
    net(data(16))
    assert not torch.equal(net.bn1.running_mean, before["bn1.running_mean"])


def test_num_batches_tracked_counts_the_batches(net):
    bn.recalibrate(net, data(48).split(16))
    assert net.bn1.num_batches_tracked == 3


# --- batches that cannot count ---


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_batch_that_is_not_finite_counts_for_no_layer(net, bad):
    good = data(48).split(16)
    expected = copy.deepcopy(net)
    bn.recalibrate(expected, good)
    spoilt = data(16, seed=9)
    spoilt[3, 2] = bad
    with pytest.warns(RuntimeWarning, match=r"Batch 1 was left out: the input of 'bn1' is not finite") as warned:
        result = bn.recalibrate(net, [good[0], spoilt, *good[1:]])
    assert_same_state(net, snapshot(expected))
    assert [Path(warning.filename) for warning in warned] == [Path(__file__)]
    assert result.left_out == ("Batch 1 was left out: the input of 'bn1' is not finite.",)
    assert result.left_out[0] in str(result)


def test_a_last_batch_of_one_is_left_out_by_name(net):
    x = data(33)
    with pytest.warns(RuntimeWarning, match=r"Batch 2 was left out: it gives 'bn1' one value per channel"):
        bn.recalibrate(net, x.split(16))
    assert_statistics(net.bn1, *numpy_statistics(x[:32]))


def test_an_empty_batch_changes_nothing():
    x = data(32)
    model = nn.BatchNorm1d(4)
    bn.recalibrate(model, [x, x[:0]])
    assert_statistics(model, *numpy_statistics(x))


@pytest.mark.parametrize("batches", [[], iter(())])
def test_no_batches_is_an_error(net, batches):
    before = snapshot(net)
    with pytest.raises(bn.BatchNormError, match=r"no batch it could use.*There was none"):
        bn.recalibrate(net, batches)
    assert_same_state(net, before)


# --- kinds of batches ---


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm1d(4)

    def forward(self, *, pixels, scale=1.0):
        return self.bn(input=pixels * scale)


@pytest.mark.parametrize("batch", [{"pixels": data(16)}, ({"pixels": data(16), "scale": 1.0}, 3)])
def test_a_dict_is_given_as_keyword_arguments(batch):
    model = Keywords()
    bn.recalibrate(model, [batch])
    assert_statistics(model.bn, *numpy_statistics(data(16)))


@pytest.mark.parametrize("kind", [tuple, list])
def test_a_tuple_gives_its_first_element(kind):
    model = nn.BatchNorm1d(4)
    bn.recalibrate(model, [kind((data(16), torch.zeros(16)))])
    assert_statistics(model, *numpy_statistics(data(16)))


def test_a_data_loader_with_an_uneven_last_batch():
    x = data(50)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.zeros(50)), batch_size=16)
    model = nn.BatchNorm1d(4)
    bn.recalibrate(model, loader)
    assert_statistics(model, *numpy_statistics(x))


@pytest.mark.parametrize("batch", [data(16), (data(16), 3), {"pixels": data(16)}], ids=["tensor", "tuple", "dict"])
def test_a_batch_is_moved_to_the_device_of_the_model(batch):
    model = (Keywords() if isinstance(batch, dict) else Net()).to("meta")
    assert run_batch(model, batch).device == torch.device("meta")


def test_forward_runs_any_other_kind_of_batch():
    model = nn.BatchNorm1d(4)
    bn.recalibrate(model, ["a", "b"], forward=lambda m, name: m(data(16, seed=ord(name))))
    assert_statistics(model, *numpy_statistics(torch.cat([data(16, seed=97), data(16, seed=98)])))


@pytest.mark.parametrize("batches", [data(16), {"pixels": data(16)}])
def test_one_batch_in_place_of_many_is_named(batches):
    with pytest.raises(bn.BatchNormError, match=r"wanted an iterable of batches; got one .*Give \[batch\]"):
        bn.recalibrate(nn.BatchNorm1d(4), batches)


def test_unknown_estimator_is_named():
    with pytest.raises(bn.BatchNormError, match="estimator must be 'pooled' or 'paper'; got 'mean'"):
        bn.recalibrate(nn.BatchNorm1d(4), [data(16)], estimator="mean")  # pyright: ignore[reportArgumentType]


# --- which layers ---


class CalledTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm1d(4)
        self.again = self.bn

    def forward(self, x):
        return self.bn(x), self.again(10 * x[:5])


def test_a_shared_layer_pools_all_its_calls():
    model, x = CalledTwice(), data(32)
    result = bn.recalibrate(model, x.split(16))
    assert_statistics(model.bn, *numpy_statistics(torch.cat([x, 10 * x[:5], 10 * x[16:21]])))
    assert [row.values for row in result.rows] == [42]


def test_layers_in_eval_inside_a_network_in_training_mode_are_kept(net):
    net.train()
    net.bn1.eval()
    before = snapshot(net)
    result = bn.recalibrate(net, [data(16)])
    assert torch.equal(net.bn1.running_mean, before["bn1.running_mean"])
    assert not torch.equal(net.bn2.running_mean, before["bn2.running_mean"])
    assert result.rows[0].reason == "in eval, the network in training mode"


def test_a_network_in_eval_is_recalibrated_whole(net):
    bn.recalibrate(net.eval(), [data(16, shift=9.0)])
    assert_statistics(net.bn1, *numpy_statistics(data(16, shift=9.0)))


def test_a_layer_that_no_batch_reaches_is_kept(net):
    net.spare = nn.BatchNorm1d(4)
    result = bn.recalibrate(net, [data(16)])
    assert result.rows[-1].reason == "not reached by any batch"
    assert net.state_dict()["spare.running_var"].tolist() == [1.0] * 4


def test_a_layer_without_running_statistics_goes_on_without():
    model = nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), nn.BatchNorm1d(4))
    result = bn.recalibrate(model, [data(16)])
    assert [row.reason for row in result.rows] == ["has no running statistics", ""]
    assert model[0].running_mean is None


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(4, 4), "Linear has no BatchNorm layer"),
        (nn.Sequential(nn.InstanceNorm1d(4, track_running_stats=True)), "Sequential has no BatchNorm layer"),
        (nn.BatchNorm1d(4, track_running_stats=False), "every BatchNorm layer keeps what it has"),
        (
            nn.Sequential(*(nn.BatchNorm1d(4, track_running_stats=False) for _ in range(20))),
            r"; '4': has no running statistics; and 15 more\)",
        ),
        (nn.Sequential(nn.LazyBatchNorm1d()), "'0' is a lazy layer without a shape yet"),
    ],
)
def test_nothing_to_recalibrate_is_an_error(model, message):
    with pytest.raises(bn.BatchNormError, match=message):
        bn.recalibrate(model, [data(16)])


def test_timm_layers_with_an_activation():
    timm = pytest.importorskip("timm")
    x = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(2))
    model = timm.layers.BatchNormAct2d(4, drop_layer=nn.Dropout)
    bn.recalibrate(model, x.split(3))
    assert_statistics(model, *numpy_statistics(x))


@pytest.mark.parametrize("layer", [bn.BatchNorm1d, nn.SyncBatchNorm])
def test_other_kinds_of_layer(layer):
    model = layer(4)
    bn.recalibrate(model, data(32).split(16))
    assert_statistics(model, *numpy_statistics(data(32)))


def test_a_compiled_network(net):
    expected = copy.deepcopy(net)
    bn.recalibrate(expected, data(32).split(16))
    compiled = torch.compile(net)
    assert isinstance(compiled, nn.Module)
    bn.recalibrate(compiled, data(32).split(16))
    assert_same_state(net, snapshot(expected))


# --- what is shown ---


def test_rows_say_how_far_the_statistics_moved():
    model = nn.BatchNorm1d(2, eps=1e-12)
    model.register_buffer("running_mean", torch.tensor([1.0, 0.0]))
    model.register_buffer("running_var", torch.tensor([4.0, 1.0]))
    x = torch.tensor([[7.0, -1.0], [9.0, 1.0]])  # means 8 and 0, variances 2 and 2
    (row,) = bn.recalibrate(model, [x]).rows
    assert row.values == 2
    assert row.mean_shift == pytest.approx(3.5)
    assert (row.std_low, row.std_high) == pytest.approx((0.5**0.5, 2**0.5))


def test_the_result_prints_as_a_table(net):
    net.train()
    net.bn1.eval()
    lines = str(bn.recalibrate(net, [data(16)])).splitlines()
    assert re.split("  +", lines[0]) == [
        *("name", "outcome", "values", "mean shift (old std)", "std ratio, min", "max", "reason")
    ]
    assert re.split("  +", lines[2])[-1] == "in eval, the network in training mode"
    assert [line.split()[:3] for line in lines[2:4]] == [["bn1", "kept", "0"], ["bn2", "recalibrated", "16"]]
    assert lines[4:] == ["1 recalibrated, 1 kept"]


def test_the_result_counts_the_outcomes(net):
    net.spare = nn.BatchNorm1d(4)
    result = bn.recalibrate(net, [data(16)])
    assert [row.outcome for row in result.rows] == ["recalibrated", "recalibrated", "kept"]
    assert (result.recalibrated, result.kept) == (2, 1)


@pytest.mark.parametrize(("batches", "total"), [([data(8)] * 2, 2), ((data(8) for _ in range(2)), None)])
def test_a_function_is_called_after_each_batch(batches, total):
    told = []
    bn.recalibrate(nn.BatchNorm1d(4), batches, progress=lambda *args: told.append(args))
    assert told == [(1, total), (2, total)]


def shown(monkeypatch, terminal, batches, **options):
    """Return what `recalibrate` writes to stderr."""
    stderr = io.StringIO()
    monkeypatch.setattr(stderr, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stderr", stderr)
    bn.recalibrate(nn.BatchNorm1d(4), batches, **options)
    return stderr.getvalue()


@pytest.mark.parametrize("options", [{}, {"progress": False}], ids=["default", "off"])
def test_nothing_is_shown_unless_asked_even_on_a_terminal(monkeypatch, capfd, options):
    assert shown(monkeypatch, True, [data(8)] * 2, **options) == ""
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("batches", "lines"),
    [
        ([data(8)] * 2, "\rrecalibrate: batch 1 of 2\rrecalibrate: batch 2 of 2\n"),
        ((data(8) for _ in range(2)), "\rrecalibrate: batch 1\rrecalibrate: batch 2\n"),
    ],
    ids=["total", "no total"],
)
def test_a_terminal_shows_one_line_when_asked(monkeypatch, batches, lines):
    assert shown(monkeypatch, True, batches, progress=True) == lines


def test_a_log_file_gets_a_line_per_tenth_when_asked(monkeypatch):
    written = shown(monkeypatch, False, [data(8)] * 40, progress=True)
    assert written.splitlines() == [f"recalibrate: batch {done} of 40" for done in range(4, 41, 4)]


def test_a_log_file_gets_a_line_after_1_2_4_8_batches_without_a_total(monkeypatch):
    written = shown(monkeypatch, False, (data(8) for _ in range(40)), progress=True)
    assert written.splitlines() == [f"recalibrate: batch {done}" for done in (1, 2, 4, 8, 16, 32)]


def test_one_process_shows_for_all(monkeypatch):
    monkeypatch.setattr("batchnorm.algorithm2.progress.rank", lambda: 1)
    assert shown(monkeypatch, True, [data(8)] * 2, progress=True) == ""


def test_a_terminal_line_ends_before_an_error(monkeypatch):
    stderr = io.StringIO()
    monkeypatch.setattr(stderr, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", stderr)
    with pytest.raises(OSError, match="disk"):
        bn.recalibrate(nn.BatchNorm1d(4), failing_batches(), progress=True)
    assert stderr.getvalue() == "\rrecalibrate: batch 1\n"


# --- two processes ---

BATCHES = ([data(20, shift=-5.0), data(3, shift=-5.0, seed=1)], [data(64, shift=40.0, scale=0.5, seed=2)])


def statistics_after(model, layer, batches, **options):
    result = bn.recalibrate(model, batches, **options)
    row = next(row for row in result.rows if row.values)
    mean, var = (layer.state_dict()[name].tolist() for name in STATISTICS)
    return mean, var, row.values, int(layer.num_batches_tracked)


def all_batches_in_rank_1(rank):
    return [b for batches in BATCHES for b in batches] if rank else []


def pooled(rank):
    model = nn.BatchNorm1d(4)
    return statistics_after(model, model, BATCHES[rank])


def sync(rank):
    model = nn.SyncBatchNorm(4)
    return statistics_after(model, model, BATCHES[rank])


def ddp(rank):
    model = nn.BatchNorm1d(4)
    return statistics_after(nn.parallel.DistributedDataParallel(model), model, all_batches_in_rank_1(rank))


def one_side_only(rank):
    model = nn.BatchNorm1d(4)
    return statistics_after(model, model, all_batches_in_rank_1(rank))


def paper(rank):
    model = nn.BatchNorm1d(4)
    return statistics_after(model, model, BATCHES[rank], estimator="paper")


def failing(rank):
    model = nn.BatchNorm1d(4)
    try:
        bn.recalibrate(model, failing_batches() if rank else BATCHES[0])
    except (OSError, PeerError) as error:
        return str(error), model.state_dict()["running_var"].tolist()
    return "no error", None


def mistaken(rank):
    return error_of(lambda: bn.recalibrate(nn.BatchNorm1d(4) if rank else nn.Linear(4, 4), BATCHES[rank]))


def different(rank):
    return error_of(lambda: bn.recalibrate(nn.BatchNorm1d(4 + rank), [data(8, c=4 + rank)]))


def error_of(call):
    try:
        call()
    except (bn.BatchNormError, PeerError) as error:
        return [type(error).__name__, str(error)]
    return ["no error"]


CASES = (pooled, sync, ddp, one_side_only, paper, failing, mistaken, different)


def run_cases(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=30)
    )
    results = {case.__name__: case(rank) for case in CASES}
    torch.distributed.barrier()  # leave together: a process that goes early can abort the other
    if rank == 0:
        results["alone"] = error_of(lambda: bn.recalibrate(nn.BatchNorm1d(4), BATCHES[0]))
    (folder / f"{rank}.json").write_text(json.dumps(results))
    os._exit(0)  # the group cannot be taken down in order: rank 1 is gone while rank 0 still works


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Return the results of each case by process, from two processes that gloo connects, started once."""
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(run_cases, folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("case", ["pooled", "sync", "ddp", "one_side_only", "paper"])
def test_processes_end_with_the_same_numbers_of_all_data(ranks, case):
    first, second = (results[case] for results in ranks)
    assert first == second
    batches = [b for batches in BATCHES for b in batches]
    mean, var = numpy_statistics(torch.cat(batches))
    if case == "paper":
        mean, var = (np.mean(values, axis=0) for values in zip(*map(numpy_statistics, batches), strict=True))
    np.testing.assert_allclose(first[0], mean, rtol=FLOAT32)
    np.testing.assert_allclose(first[1], var, rtol=FLOAT32)
    assert first[2:] == [87, 3]


def test_a_process_that_fails_fails_the_others_and_none_changes(ranks):
    message = "recalibrate failed in the process of rank 1, see its error; nothing changed here"
    assert ranks[0]["failing"] == [message, [1.0] * 4]
    assert ranks[1]["failing"] == ["disk", [1.0] * 4]


def test_a_process_that_is_gone_is_no_mistake_of_the_caller(ranks):
    kind, message = ranks[0]["alone"]
    assert kind == "PeerError"
    assert message.startswith("recalibrate lost another process; nothing changed here. ")
    assert not issubclass(PeerError, ValueError)


def test_a_process_with_a_mistake_fails_the_others(ranks):
    assert ranks[0]["mistaken"] == ["BatchNormError", "Linear has no BatchNorm layer: nothing to recalibrate"]
    kind, message = ranks[1]["mistaken"]
    assert kind == "PeerError"
    assert "failed in the process of rank 0" in message


def test_processes_with_different_networks_fail(ranks):
    messages = [results["different"] for results in ranks]
    assert messages == [
        ["BatchNormError", f"the process of rank {other} recalibrates other layers; give all the same network"]
        for other in (1, 0)
    ]


def test_torchs_averaged_model():
    """SWA and EMA: the average gets the statistics of its own weights, and the network behind it keeps its own."""
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    averaged = AveragedModel(network)
    linear, layer = cast(nn.Sequential, averaged.module)
    for parameter in network.parameters():
        parameter.data += 1
    averaged.update_parameters(network)
    averaged.update_parameters(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))
    before = copy.deepcopy(network.state_dict())
    batches = [data(16), data(16)]
    result = bn.recalibrate(averaged, batches)
    assert [row.name for row in result.rows] == ["module.1"]
    values = linear(torch.cat(batches)).detach()
    torch.testing.assert_close(layer.running_mean, values.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.running_var, values.var(0), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    averaged.eval()(batches[0])


def test_a_network_that_is_one_layer_has_a_name_in_the_table():
    printed = str(bn.recalibrate(nn.BatchNorm1d(3), [torch.randn(4, 3)]))
    assert printed.splitlines()[2].startswith("(itself)  recalibrated")


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, bn.BatchNorm1d])
def test_padding_that_is_masked_is_not_recalibrated(kind):
    model = nn.Sequential(kind(3), nn.Conv1d(3, 2, 1), kind(2))
    x = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([6, 1, 3, 4])
    counted = torch.arange(6) < lengths[:, None]
    padded = x.masked_fill(~counted[:, None], 99.0)

    def forward(model, x):
        with bn.masked(model, lengths=lengths):
            model(x)

    bn.recalibrate(model, [padded, padded], forward=forward)
    values = x.movedim(1, -1)[counted]
    assert_statistics(model[0], *numpy_statistics(torch.cat([values, values])))
    other = copy.deepcopy(model)
    with bn.masked(other, lengths=lengths):
        bn.recalibrate(other, [padded.masked_fill(~counted[:, None], -7.0)] * 2)
    # Tolerance: the sums of the kernel have another order where the padding has other values.
    for name in STATISTICS:
        torch.testing.assert_close(getattr(other[2], name), getattr(model[2], name), rtol=1e-5, atol=1e-6)


def test_lengths_that_the_forward_passes_keep_padding_out():
    layer = bn.BatchNorm1d(3)
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    bn.recalibrate(layer, [x], forward=lambda layer, x: layer(x, lengths=torch.tensor([4, 1])))
    assert_statistics(layer, *numpy_statistics(torch.cat([x[0].T, x[1, :, :1].T])))
