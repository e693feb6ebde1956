"""Test synchronized statistics: four gloo processes against the numpy oracle on the whole batch."""

from __future__ import annotations

import copy
import io
import random
from datetime import timedelta
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import timm
import torch
import torch.distributed as dist
from support import reference
from support.commands import start
from support.kernel_cases import to_numpy
from torch import nn
from torch._dynamo.exc import Unsupported
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

import batchnorm as bn
from batchnorm.kernels import bindings

STEPS = 12  # of restarted.py
WORLD = 4
CHANNELS = 5


class Case(NamedTuple):
    """A batch and how it is spread over the processes.

    Arguments:
        counts: examples of each process.
        layer: makes the layer.
        activation: what the oracle applies.
        dtype: of the batch.
        residual: add one.
        masked: leave some values out.
        channels_last: the layout.
        mean: of the values.
    """

    counts: tuple[int, ...]
    layer: Any = bn.BatchNorm2d
    activation: Any = None
    dtype: torch.dtype = torch.float32
    residual: bool = False
    masked: bool = False
    channels_last: bool = False
    mean: float = 1.0


def act2d(channels):
    return timm.layers.BatchNormAct2d(channels, act_layer=nn.SiLU)  # pyright: ignore[reportPrivateImportUsage]


CASES = {
    "equal": Case((2, 2, 2, 2)),
    "uneven": Case((1, 4, 2, 3), activation="relu", residual=True),
    "empty ranks": Case((0, 3, 0, 1), activation="silu", residual=True),
    "float64": Case((1, 4, 0, 3), activation="gelu", dtype=torch.float64, residual=True),
    "channels last": Case((2, 1, 3, 2), activation="relu6", channels_last=True),
    "masked": Case((1, 4, 2, 3), activation="relu", residual=True, masked=True),
    "masked float64": Case((1, 4, 2, 3), activation="silu", masked=True, dtype=torch.float64),
    "torch's layer": Case((1, 4, 2, 3), nn.BatchNorm2d),
    "torch's float64": Case((1, 4, 2, 3), nn.BatchNorm2d, dtype=torch.float64, masked=True),
    "torch's SyncBatchNorm": Case((1, 4, 2, 3), nn.SyncBatchNorm),
    "timm's with SiLU": Case((1, 4, 2, 3), act2d, activation="silu"),
    "far from zero": Case((3, 4, 2, 3), mean=1e4),
}


def batch(case: Case) -> tuple[torch.Tensor, ...]:
    """Return x, residual, dz and the mask of the whole batch."""
    rng = torch.Generator().manual_seed(3)
    n = sum(case.counts)
    x, residual, dz = (torch.randn(n, CHANNELS, 4, 6, generator=rng, dtype=torch.float64) for _ in range(3))
    x = x * 1e-2 + case.mean if case.mean > 100 else x + case.mean
    mask = torch.rand(n, 4, 6, generator=rng) < 0.7 if case.masked else torch.ones(n, 4, 6, dtype=torch.bool)
    return x.to(case.dtype), residual.to(case.dtype), dz.to(case.dtype), mask


def run_case(case: Case, rank: int) -> dict[str, torch.Tensor | None]:
    end = list(accumulate(case.counts))[rank]
    own = slice(end - case.counts[rank], end)
    x, residual, dz, mask = (t[own] for t in batch(case))
    if case.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    ours = case.layer is bn.BatchNorm2d
    layer = case.layer(CHANNELS, **({"activation": case.activation} if ours else {})).to(case.dtype)
    model = bn.synchronize(nn.Sequential(layer))
    inputs = [t.clone().requires_grad_() for t in ((x, residual) if case.residual else (x,))]
    if case.masked:
        with bn.masked(model, mask=mask):
            z = layer(*inputs)
    else:
        z = layer(*inputs)
    wanted = (*inputs, layer.weight, layer.bias)
    gradients = torch.autograd.grad(z, wanted, dz)
    names = ["dx", *(["dresidual"] if case.residual else []), "dweight", "dbias"]
    found = {"z": z.detach(), **dict(zip(names, gradients, strict=True))}
    return {**found, "running_mean": layer.running_mean, "running_var": layer.running_var}


def error_of(run) -> str:
    try:
        run()
    except bn.PeerError as error:
        return str(error)
    return "no error"


def other_orders(rank: int) -> dict[str, str]:
    """Run layers in different orders, and stay away from one."""
    layers = {"first": bn.BatchNorm1d(3), "second": bn.BatchNorm1d(5)}
    bn.synchronize(nn.ModuleDict(layers))
    name = "first" if rank != 2 else "second"
    errors = {"order": error_of(lambda: layers[name](torch.randn(4, layers[name].num_features)))}
    group = dist.new_group(list(range(WORLD)), timeout=timedelta(seconds=2))
    alone = bn.synchronize(nn.Sequential(bn.BatchNorm1d(3)), group)
    z = alone(torch.randn(4, 3))
    errors["skipped backward"] = error_of(z.sum().backward) if rank != 1 else ""
    dist.barrier()
    group = dist.new_group(list(range(WORLD)), timeout=timedelta(seconds=2))
    alone = bn.synchronize(nn.Sequential(bn.BatchNorm1d(3)), group)
    errors["skipped"] = error_of(lambda: alone(torch.randn(4, 3))) if rank != 1 else ""
    dist.barrier()
    other = nn.Sequential(bn.BatchNorm1d(3), *([nn.BatchNorm1d(7)] if rank == 3 else []))
    errors["network"] = error_of(lambda: bn.synchronize(other))
    return errors


def trained(rank: int) -> list[torch.Tensor]:
    """Train a network under DistributedDataParallel, some steps with no_sync, and return its state."""
    torch.manual_seed(0)
    model = bn.synchronize(nn.Sequential(nn.Linear(4, 6), bn.BatchNorm1d(6, activation="relu"), nn.Linear(6, 2)))
    ddp = DistributedDataParallel(model, find_unused_parameters=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))[2 * rank : 2 * rank + 2]
    for _ in range(3):
        with ddp.no_sync():
            ddp(x).square().mean().backward()
        with torch.autocast("cpu", torch.bfloat16):
            ddp(x)
        ddp(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [t.detach().clone() for t in model.state_dict().values()]


def together(rank: int) -> dict[str, torch.Tensor | None]:
    """Accumulate masked micro-batches of synchronized layers with virtual batches."""
    x, _, _, mask = batch(CASES["masked"])
    layer = bn.BatchNorm2d(CHANNELS, momentum=1.0, virtual_batch_size=2)
    model = bn.synchronize(nn.Sequential(layer))
    own = [slice(0, 3), slice(3, 5), slice(5, 7), slice(7, 10)][rank]
    with bn.accumulate(model):
        for part in (slice(own.start, own.start + 2), slice(own.start + 2, own.stop)):
            layer(x[part], mask=mask[part])  # of rank 1 the second is empty
    return {name: getattr(layer, name) for name in ("running_mean", "running_var", "num_batches_tracked")}


def recalibrated(rank: int) -> dict[str, Any]:
    """Recalibrate synchronized layers on another number of batches in each process."""
    model = bn.synchronize(nn.Sequential(bn.BatchNorm1d(3), nn.BatchNorm1d(3)))
    bn.recalibrate(model, list(numbered(rank)))
    state = copy.deepcopy(model.get_submodule("0").state_dict())
    x = torch.full((2, 3), float(rank)) + torch.tensor([[0.0], [1.0]])
    return {"state": state, "z": model(x).detach()}


def numbered(rank: int) -> tuple[torch.Tensor, ...]:
    """Return a batch in process 0, two in process 1, and so on."""
    return torch.randn(4 * (rank + 1), 3, generator=torch.Generator().manual_seed(rank)).add(rank).split(4)


def run_rank(rank: int, _group: Any) -> dict[str, Any]:
    found = {name: run_case(case, rank) for name, case in CASES.items()}
    others = {"trained": trained(rank), "together": together(rank), "recalibrated": recalibrated(rank)}
    return {"cases": found, "errors": other_orders(rank), **others}


@pytest.fixture(scope="module")
def ranks(gloo):
    return gloo.run(run_rank)


@pytest.mark.parametrize("name", CASES)
def test_processes_compute_what_one_would_with_the_whole_batch(ranks, name):
    case = CASES[name]
    x, residual, dz, mask = batch(case)
    found = [rank["cases"][name] for rank in ranks]
    counted = mask.numpy()
    packed = [np.moveaxis(to_numpy(t), 1, -1)[counted] for t in (x, residual, dz)]
    ones, zeros = np.ones(CHANNELS), np.zeros(CHANNELS)
    added = packed[1] if case.residual else 0.0
    arguments = (packed[0], ones, zeros, 1e-5, case.activation)
    z = reference.forward(*arguments, residual=added)
    dx, dweight, dbias, dresidual = reference.backward(packed[2], *arguments, residual=added)
    # float32: roundings of values near 1, of their sums, and of x itself, which at 1e4 are a twentieth of its std.
    tolerance = 1e-10 if case.dtype == torch.float64 else 1e-3 if case.mean > 100 else 2e-5
    expected = {"z": z, "dx": dx, **({"dresidual": dresidual} if case.residual else {})}
    for key, want in expected.items():
        got = np.moveaxis(to_numpy(torch.cat([rank[key] for rank in found])), 1, -1)
        scale = np.abs(want).max()
        np.testing.assert_allclose(got[counted] / scale, want / scale, atol=tolerance, rtol=0)
        assert (got[~counted] == 0).all()
    for key, want in (("dweight", dweight), ("dbias", dbias)):
        got = sum(to_numpy(rank[key]) for rank in found)
        np.testing.assert_allclose(got, want, rtol=0, atol=30 * tolerance)
    mean, var = reference.population(packed[0])
    for rank in found:
        assert_close(to_numpy(rank["running_mean"]), 0.1 * mean, rtol=1e-6, atol=1e-6)
        assert_close(to_numpy(rank["running_var"]), 0.9 + 0.1 * var, rtol=1e-6, atol=1e-6)


def test_another_order_of_layers_is_an_error_that_names_layer_and_rank(ranks):
    for rank, found in enumerate(ranks):
        message = found["errors"]["order"]
        assert "'first' (3 channels)" in message
        assert "'second' (5 channels)" in message
        assert ("rank 0 is in" if rank == 2 else "rank 2 is in") in message


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_skipped_layer_is_an_error_within_the_timeout_that_names_who_skipped(ranks, direction):
    for rank in (0, 2, 3):
        found = ranks[rank]["errors"]["skipped" if direction == "forward" else "skipped backward"]
        assert f"rank {rank} waited in the {direction} of layer '0' for rank 1:" in found


def test_another_network_is_an_error_that_names_layer_and_rank(ranks):
    for rank in range(3):
        want = f"rank 3 synchronizes layer '1' (7 channels) where rank {rank} has no layer"
        assert want in ranks[rank]["errors"]["network"]
    assert "rank 0 synchronizes no layer where rank 3 has layer '1'" in ranks[3]["errors"]["network"]


def test_under_ddp_all_processes_end_with_the_same_state(ranks):
    for other in ranks[1:]:
        assert_close(other["trained"], ranks[0]["trained"], rtol=0, atol=0)


def test_masks_virtual_batches_and_accumulation_together(ranks):
    x, _, _, mask = batch(CASES["masked"])
    mean, var = reference.population(np.moveaxis(to_numpy(x), 1, -1)[mask.numpy()])
    for rank in ranks:
        found = rank["together"]
        assert_close(to_numpy(found["running_mean"]), mean, rtol=1e-6, atol=1e-6)
        assert_close(to_numpy(found["running_var"]), var, rtol=1e-6, atol=1e-6)
        assert found["num_batches_tracked"] == 1


def test_recalibrate_waits_for_no_process_within_a_batch(ranks):
    whole = torch.cat([x for rank in range(WORLD) for x in numbered(rank)])
    mean, var = reference.population(to_numpy(whole))
    outputs = [rank["recalibrated"] for rank in ranks]
    for found in outputs:
        assert_close(to_numpy(found["state"]["running_mean"]), mean, rtol=1e-6, atol=1e-6)
        assert_close(to_numpy(found["state"]["running_var"]), var, rtol=1e-6, atol=1e-6)
    z = torch.cat([found["z"] for found in outputs])
    assert_close(z.mean(0), torch.zeros(3), rtol=0, atol=1e-6)  # the layers are synchronized again


@pytest.fixture
def alone():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # pyright: ignore[reportPrivateImportUsage]
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("kind", [bn.BatchNorm1d, nn.BatchNorm1d, nn.SyncBatchNorm])
def test_copies_share_the_processes(kind):
    model = bn.synchronize(nn.Sequential(kind(3)))
    twin, x = copy.deepcopy(model), torch.randn(4, 3)
    assert_close(twin(x), model(x), rtol=0, atol=0)
    assert model.state_dict().keys() == nn.Sequential(nn.BatchNorm1d(3)).state_dict().keys()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("kind", [bn.BatchNorm1d, nn.BatchNorm1d, nn.SyncBatchNorm])
def test_pickles_lose_the_processes(kind):
    file, x = io.BytesIO(), torch.randn(4, 3)
    torch.save(bn.synchronize(nn.Sequential(kind(3))), file)
    dist.destroy_process_group()
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert_close(loaded(x), nn.BatchNorm1d(3)(x))
    assert "forward" not in vars(loaded[0])


@pytest.mark.usefixtures("alone")
def test_a_destroyed_process_group_is_named():
    model = bn.synchronize(nn.Sequential(bn.BatchNorm1d(3)))
    dist.destroy_process_group()
    with pytest.raises(bn.BatchNormError, match="'0' is synchronized, but its process group was destroyed"):
        model(torch.randn(4, 3))
    assert model.eval()(torch.randn(4, 3)).shape == (4, 3)


@pytest.mark.usefixtures("alone")
def test_a_subclass_of_syncbatchnorm_keeps_its_activation():
    plain = timm.layers.BatchNormAct2d(3, act_layer=nn.SiLU)  # pyright: ignore[reportPrivateImportUsage]
    layer = timm.layers.convert_sync_batchnorm(copy.deepcopy(plain))  # pyright: ignore[reportPrivateImportUsage]
    assert isinstance(layer, nn.SyncBatchNorm)
    x = torch.randn(2, 3, 4, 4)
    assert_close(bn.synchronize(layer)(x), plain(x))
    assert_close(layer.running_var, plain.running_var)
    assert layer.num_batches_tracked == 1


@pytest.mark.usefixtures("alone")
def test_a_lazy_layer_is_refused():
    with pytest.raises(bn.BatchNormError, match="layer '0' has no channels yet"):
        bn.synchronize(nn.Sequential(nn.LazyBatchNorm1d()))


@pytest.mark.usefixtures("alone")
def test_eps_must_be_positive():
    model = bn.synchronize(nn.Sequential(bn.BatchNorm1d(3, eps=0.0)))
    with pytest.raises(bn.BatchNormError, match="eps must be positive"):
        model(torch.randn(4, 3))


@pytest.mark.usefixtures("alone")
def test_desynchronized_layers_are_ordinary():
    model = nn.Sequential(bn.BatchNorm1d(3), nn.BatchNorm1d(3), bn.BatchNorm1d(3, virtual_batch_size=2))
    assert bn.desynchronize(bn.synchronize(model)) is model
    assert model[0]._special is None
    assert "forward" not in vars(model[1])
    assert model[2].virtual_batch_size == 2


@pytest.mark.usefixtures("alone")
def test_one_value_in_all_processes_is_refused():
    model = bn.synchronize(nn.Sequential(bn.BatchNorm1d(3)))
    with pytest.raises(bn.BatchNormError, match="all processes together have one"):
        model(torch.randn(1, 3))


@pytest.mark.usefixtures("alone")
def test_more_channels_than_the_layers_have_are_refused():
    model = bn.synchronize(nn.Sequential(bn.BatchNorm1d(3, affine=False, track_running_stats=False)))
    with pytest.raises(bn.BatchNormError, match="layer '0' got 4 channels; synchronized layers have at most 3"):
        model(torch.randn(4, 4))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's own look
@pytest.mark.usefixtures("alone")
def test_synchronization_breaks_the_graph_and_the_rest_is_compiled():
    torch._dynamo.reset()
    layer, x = bn.BatchNorm1d(3), torch.randn(4, 3)
    bn.synchronize(nn.Sequential(layer))
    twin = copy.deepcopy(layer)
    assert_close(torch.compile(layer, backend="eager")(x), twin(x))
    assert_close(layer.running_var, twin.running_var)
    torch._dynamo.reset()
    with pytest.raises(Unsupported, match="batch_norm"):
        torch.compile(layer, backend="eager", fullgraph=True)(x)


@pytest.mark.usefixtures("alone")
def test_a_second_derivative_is_refused():
    model, x = bn.synchronize(nn.Sequential(bn.BatchNorm1d(3))), torch.randn(4, 3, requires_grad=True)
    (dx,) = torch.autograd.grad(model(x).pow(3).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        dx.sum().backward()


@pytest.mark.usefixtures("alone")
def test_ddp_on_cpus_refuses_the_class_syncbatchnorm():  # as docs/statistics.md says
    model = bn.synchronize(nn.Sequential(nn.SyncBatchNorm(3)))
    with pytest.raises(ValueError, match="SyncBatchNorm layers only work with GPU modules"):
        DistributedDataParallel(model)


def test_a_new_group_has_the_timeout_of_the_processes():
    waits = timedelta(seconds=77)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1, timeout=waits)  # pyright: ignore[reportPrivateImportUsage]
    try:
        layer = bn.BatchNorm1d(3)
        bn.synchronize(nn.Sequential(layer))
        assert layer._special is not None
        assert layer._special.meeting is not None
        group = layer._special.meeting.group
        assert group is not dist.group.WORLD
        assert group._get_backend(torch.device("cpu")).options._timeout == waits
    finally:
        dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_statistics_and_sums_of_gradients_are_by_the_kernels(monkeypatch):
    called = []
    for name in ("statistics", "normalize", "backward"):
        kernel = getattr(bindings, name)
        monkeypatch.setattr(
            bindings, name, lambda *a, kernel=kernel, name=name, **k: (called.append(name), kernel(*a, **k))[1]
        )
    x = torch.randn(4, 3, requires_grad=True)
    bn.synchronize(nn.Sequential(bn.BatchNorm1d(3)))(x).sum().backward()
    assert called == ["statistics", "normalize", "backward", "backward"]


@pytest.mark.usefixtures("alone")
def test_far_from_zero_it_is_nearer_to_float64_than_torchs_formula():
    rng = torch.Generator().manual_seed(0)
    x = (torch.randn(64, 3, 8, 8, generator=rng, dtype=torch.float64) * 1e-2 + 1e4).float()
    packed = np.moveaxis(to_numpy(x), 1, -1).reshape(-1, 3)
    want = reference.forward(packed, np.ones(3), np.zeros(3))
    layers = {"ours": bn.synchronize(bn.BatchNorm2d(3)), "torch": nn.BatchNorm2d(3)}
    wrong = {
        n: np.abs(np.moveaxis(to_numpy(layer(x)), 1, -1).reshape(-1, 3) - want).max() for n, layer in layers.items()
    }
    assert wrong["ours"] < 1e-5  # roundings of values up to 4
    assert wrong["ours"] < wrong["torch"] / 100


def test_without_processes_it_is_refused():
    with pytest.raises(bn.BatchNormError, match=r"wants the processes of torch\.distributed; got none"):
        bn.synchronize(nn.Sequential(nn.BatchNorm1d(3)))


@pytest.mark.slow
def test_torchrun_restarts_after_a_killed_process_and_the_run_goes_on(tmp_path):
    said = tmp_path / "output"
    launcher = ["--nproc-per-node=3", "--standalone", "--max-restarts=1", Path(__file__).with_name("restarted.py")]
    step = random.SystemRandom().randrange(STEPS)  # whichever it is, the run ends with the same state
    process = start(*launcher, tmp_path, step, module="torch.distributed.run", output=said, OMP_NUM_THREADS="1")
    process.join(240)
    assert process.exitcode == 0, f"killed in step {step}: {said.read_text()}"
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(STEPS):  # one process with the whole batch
        optimizer.zero_grad()
        model(torch.randn(6, 4, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        optimizer.step()
    found = torch.load(tmp_path / f"{STEPS:03}.pt")
    assert_close(found, dict(model.state_dict()), rtol=1e-4, atol=1e-5)
