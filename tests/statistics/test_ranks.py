"""Test synchronized layers on 1 to 4 processes: drawn batches, and what torch's tests of SyncBatchNorm check."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from support import reference
from support.kernel_cases import to_numpy
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

import batchnorm as bn

CHANNELS = 3
KINDS = {"ours": bn.BatchNorm2d, "torch's": nn.BatchNorm2d, "SyncBatchNorm": nn.SyncBatchNorm}
VECTORS = {"ours": bn.BatchNorm1d, "torch's": nn.BatchNorm1d, "SyncBatchNorm": nn.SyncBatchNorm}


class Spec(NamedTuple):
    """A step of one layer, and the batch of each process.

    Arguments:
        counts: examples of each process.
        heights: rows of the feature maps of each process. Empty for vectors (N, C).
        kind: of KINDS.
        activation: only ours has one.
        residual: add one. Only ours can.
        counted: the share of values that the mask counts, or 1.0 for no mask.
        affine: gamma and beta.
        tracked: keep running statistics.
        momentum: as in the layer.
        dtype: of batch and layer.
    """

    counts: tuple[int, ...]
    heights: tuple[int, ...] = ()
    kind: str = "ours"
    activation: Any = None
    residual: bool = False
    counted: float = 1.0
    affine: bool = True
    tracked: bool = True
    momentum: float | None = 0.1
    dtype: torch.dtype = torch.float64


class Batch(NamedTuple):
    """What one process has."""

    x: torch.Tensor
    residual: torch.Tensor
    dz: torch.Tensor
    mask: torch.Tensor


def batch(spec: Spec, rank: int) -> Batch:
    rng = torch.Generator().manual_seed(rank)
    places = (spec.heights[rank], 2) if spec.heights else ()
    shape = (spec.counts[rank], CHANNELS, *places)
    x, residual, dz = (torch.randn(shape, generator=rng, dtype=torch.float64).to(spec.dtype) for _ in range(3))
    return Batch(x * (rank + 1) + rank, residual, dz, torch.rand(shape[0], *places, generator=rng) < spec.counted)


def step(rank: int, group: Any, spec: Spec) -> dict[str, np.ndarray]:
    """Return output, gradients and buffers of one process."""
    x, residual, dz, mask = batch(spec, rank)
    options = {"activation": spec.activation} if spec.kind == "ours" else {}
    layer = (KINDS if spec.heights else VECTORS)[spec.kind](
        CHANNELS, 1e-5, spec.momentum, spec.affine, spec.tracked, dtype=spec.dtype, **options
    )
    model = bn.synchronize(nn.Sequential(layer), group)
    inputs = [x.requires_grad_(), *([residual.requires_grad_()] if spec.residual else [])]
    if spec.counted < 1.0:
        with bn.masked(model, mask=mask):
            z = layer(*inputs)
    else:
        z = layer(*inputs)
    names = ["dx", *(["dresidual"] if spec.residual else []), *(["weight", "bias"] if spec.affine else [])]
    gradients = torch.autograd.grad(z, [*inputs, *layer.parameters()], dz)
    found = {"z": z, **dict(zip(names, gradients, strict=True)), **dict(layer.named_buffers())}
    return {name: to_numpy(t.detach()) for name, t in found.items()}


def rows(t: Any, mask: torch.Tensor) -> np.ndarray:
    return np.moveaxis(to_numpy(t), 1, -1)[mask.numpy()]


def check(spec: Spec, found: list[dict[str, np.ndarray]]) -> None:
    """Compare the processes with the oracle on the values of all of them that count."""
    batches = [batch(spec, rank) for rank in range(len(spec.counts))]
    x, residual, dz = (np.concatenate([rows(b[i], b.mask) for b in batches]) for i in range(3))
    ones, zeros = np.ones(CHANNELS), np.zeros(CHANNELS)
    added = residual if spec.residual else 0.0
    z = reference.forward(x, ones, zeros, 1e-5, spec.activation, residual=added)
    dx, dweight, dbias, dresidual = reference.backward(dz, x, ones, zeros, 1e-5, spec.activation, residual=added)
    # float32 and bfloat16: some roundings of values near 10, the largest here.
    tolerance = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 0.05}[spec.dtype]
    expected = {"z": z, "dx": dx, **({"dresidual": dresidual} if spec.residual else {})}
    for name, want in expected.items():
        parts = [(torch.from_numpy(f[name]), b.mask) for f, b in zip(found, batches, strict=True)]
        np.testing.assert_allclose(
            np.concatenate([rows(*part) for part in parts]), want, rtol=tolerance, atol=tolerance
        )
        assert all((rows(t, ~mask) == 0).all() for t, mask in parts)
    for name, want in (("weight", dweight), ("bias", dbias)) if spec.affine else ():
        np.testing.assert_allclose(sum(f[name] for f in found), want, rtol=tolerance, atol=20 * tolerance)
    mean, var = reference.population(x)
    momentum = 1.0 if spec.momentum is None else spec.momentum
    narrow = spec.dtype == torch.bfloat16 and spec.kind != "ours"  # torch's buffers have 8 bits then
    rtol, atol = (2**-8, 0.0) if narrow else (1e-5, 1e-6)
    for f in found if spec.tracked else ():
        np.testing.assert_allclose(f["running_mean"], momentum * mean, rtol=rtol, atol=atol)
        np.testing.assert_allclose(f["running_var"], 1 - momentum + momentum * var, rtol=rtol, atol=atol)
        assert f["num_batches_tracked"] == 1


@st.composite
def specs(draw):
    processes = draw(st.integers(1, 4))
    several = st.lists(st.integers(0, 3), min_size=processes, max_size=processes).map(tuple)
    heights = draw(st.just(()) | st.lists(st.integers(1, 3), min_size=processes, max_size=processes).map(tuple))
    kind = draw(st.sampled_from(list(KINDS)))
    ours = kind == "ours"
    return Spec(
        draw(several),
        heights,
        kind,
        draw(st.sampled_from([None, "relu", "silu"])) if ours else None,
        ours and draw(st.booleans()),
        draw(st.sampled_from([1.0, 0.6])),
    )


@settings(max_examples=60, deadline=None)
@given(spec=specs())
def test_any_split_of_a_batch_is_that_batch(gloo, spec):
    batches = [batch(spec, rank) for rank in range(len(spec.counts))]
    if sum(int(b.mask.sum()) for b in batches) < 2:
        return
    check(spec, gloo.run(step, spec, processes=len(spec.counts)))


CASES = {
    "unequal heights": Spec((2, 1, 3, 2), (4, 1, 2, 3), dtype=torch.float32),
    "unequal heights, torch's": Spec((2, 1, 3, 2), (4, 1, 2, 3), "torch's", dtype=torch.float32),
    "no affine": Spec((2, 1, 3, 2), (2, 2, 2, 2), affine=False),
    "no affine, SyncBatchNorm": Spec((2, 1, 3, 2), (2, 2, 2, 2), "SyncBatchNorm", affine=False),
    "one vector each": Spec((1, 1, 1, 1)),
    "one vector each, SyncBatchNorm": Spec((1, 1, 1, 1), kind="SyncBatchNorm"),
    "not tracked": Spec((2, 3), tracked=False),
    "cumulative average": Spec((2, 3), momentum=None),
    "cumulative average, torch's": Spec((2, 3), kind="torch's", momentum=None),
    "bfloat16": Spec((3, 4), (3, 2), activation="relu", residual=True, dtype=torch.bfloat16),
    "bfloat16, torch's": Spec((3, 4), (3, 2), "torch's", dtype=torch.bfloat16),
    "all values of a process are padding": Spec((1, 4), (1, 3), counted=0.5),
}


@pytest.mark.parametrize("name", CASES)
def test_processes_with_special_layers(gloo, name):
    check(CASES[name], gloo.run(step, CASES[name], processes=len(CASES[name].counts)))


def evaluations(rank: int, group: Any) -> list[int]:
    """Count the exchanges of a training step, and of as many eval forwards as the rank says."""
    counted, exchange = [], dist.all_gather
    model = bn.synchronize(nn.Sequential(bn.BatchNorm1d(CHANNELS), nn.BatchNorm1d(CHANNELS)), group)
    for training, forwards in ((True, 1), (False, rank)):
        model.train(training)
        calls: list[None] = []
        dist.all_gather = lambda *args, calls=calls, **kwargs: (calls.append(None), exchange(*args, **kwargs))
        try:
            for _ in range(forwards):
                z = model(torch.randn(2, CHANNELS, requires_grad=True))
                counted += [len(calls)] if training else []
                z.sum().backward()
        finally:
            dist.all_gather = exchange
        counted.append(len(calls))
    return counted


def test_two_layers_exchange_twice_forward_twice_backward_and_never_in_eval(gloo):
    assert gloo.run(evaluations) == [[2, 4, 0]] * 4


class Branched(nn.Module):
    """A network of which a branch is used in every second micro-batch."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 5), bn.BatchNorm1d(5, activation="relu"))
        self.branch = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5))

    def forward(self, x: torch.Tensor, both: bool) -> torch.Tensor:
        return self.trunk(x) + self.branch(x) if both else self.trunk(x)


def micro_batches() -> torch.Tensor:
    return torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def branched_gradients(rank: int, group: Any) -> dict[str, np.ndarray]:
    """Return gradients and buffers after three micro-batches, two of them under no_sync."""
    torch.manual_seed(0)
    model = bn.synchronize(Branched().double(), group)
    ddp = DistributedDataParallel(model, process_group=group, find_unused_parameters=True)
    for number, x in enumerate(micro_batches()):
        own = x.split((1, 3, 2))[rank]
        with ddp.no_sync() if number < 2 else nullcontext():
            (ddp(own, number == 1).square().sum() * 3).backward()
    return {
        n: to_numpy(t)
        for n, t in ({n: p.grad for n, p in model.named_parameters()} | dict(model.named_buffers())).items()
    }


def test_unused_branches_and_no_sync_are_those_of_one_process(gloo):
    torch.manual_seed(0)
    alone = Branched().double()
    for number, x in enumerate(micro_batches()):
        alone(x, number == 1).square().sum().backward()
    want = {name: p.grad for name, p in alone.named_parameters()} | dict(alone.named_buffers())
    for found in gloo.run(branched_gradients, processes=3):
        for name, t in want.items():
            np.testing.assert_allclose(found[name], to_numpy(t), rtol=1e-10, atol=1e-10, err_msg=name)


def network_gradients(rank: int, group: Any, sizes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Return the gradients and buffers of a network under DistributedDataParallel."""
    torch.manual_seed(0)
    model = bn.synchronize(network(), group)
    ddp = DistributedDataParallel(model, process_group=group)
    x = torch.randn(sum(sizes), 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (ddp(x.split(sizes)[rank]).square().sum() * len(sizes)).backward()  # DDP divides by the number of processes
    found = {name: p.grad for name, p in model.named_parameters()} | dict(model.named_buffers())
    return {name: to_numpy(t) for name, t in found.items() if t is not None}


def network() -> nn.Sequential:
    layers = (nn.Linear(4, 5), bn.BatchNorm1d(5, activation="silu"), nn.Linear(5, 5), nn.BatchNorm1d(5))
    return nn.Sequential(*layers).double()


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 5, 3)], ids=str)
def test_under_ddp_gradients_are_those_of_one_process(gloo, sizes):
    torch.manual_seed(0)
    alone = network()
    x = torch.randn(sum(sizes), 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    alone(x).square().sum().backward()
    want = {name: p.grad for name, p in alone.named_parameters()} | dict(alone.named_buffers())
    for found in gloo.run(network_gradients, sizes, processes=len(sizes)):
        for name, t in want.items():
            np.testing.assert_allclose(found[name], to_numpy(t), rtol=1e-10, atol=1e-10, err_msg=name)


def in_other_layers(rank: int, _group: Any) -> str:
    """Return the error of ranks 2 and 3, which are in different layers of a group of their own."""
    group = dist.new_group([2, 3])
    if rank < 2:
        with pytest.raises(bn.BatchNormError, match=f"rank {rank} is not in the process group"):
            bn.synchronize(nn.Sequential(bn.BatchNorm1d(CHANNELS)), group)
        return ""
    model = nn.Sequential(bn.BatchNorm1d(CHANNELS), bn.BatchNorm1d(CHANNELS))
    bn.synchronize(model, group)
    with pytest.raises(bn.PeerError) as caught:
        model[rank - 2](torch.randn(2, CHANNELS))
    return str(caught.value)


def test_in_a_group_of_some_processes_an_error_names_their_ranks(gloo):
    errors = gloo.run(in_other_layers)
    assert "rank 3 is in the forward of layer '1' (3 channels), rank 2 in the forward of layer '0'" in errors[2]
    assert "rank 2 is in the forward of layer '0' (3 channels), rank 3 in the forward of layer '1'" in errors[3]


def everything(rank: int, group: Any, micro_batches: int) -> dict[str, np.ndarray]:
    """Return output, gradients and buffers of masked micro-batches under accumulation."""
    layer = bn.BatchNorm2d(CHANNELS, momentum=1.0, activation="silu", dtype=torch.float64)
    model = bn.synchronize(nn.Sequential(layer), group)
    found = {}
    with bn.accumulate(model):
        for number in range(micro_batches):
            x, residual, dz, mask = batch(TOGETHER[number], rank)
            inputs = (x.requires_grad_(), residual.requires_grad_())
            with bn.masked(model, mask=mask):
                z = layer(*inputs)
            gradients = torch.autograd.grad(z, (*inputs, layer.weight, layer.bias), dz)
            names = ("dx", "dresidual", "weight", "bias")
            found |= {f"{name} {number}": t for name, t in zip(names, gradients, strict=True)} | {f"z {number}": z}
        assert layer.num_batches_tracked == 0
    found |= dict(layer.named_buffers())
    return {name: to_numpy(t.detach()) for name, t in found.items()}


TOGETHER = [
    Spec((2, 0, 3), (3, 1, 2), activation="silu", residual=True, counted=0.6, tracked=False),
    Spec((1, 2, 0), (2, 2, 1), activation="silu", residual=True, counted=0.6, tracked=False),
]


def test_a_mask_under_accumulation_under_synchronization_with_activation_and_residual(gloo):
    found = gloo.run(everything, len(TOGETHER), processes=3)
    for number, spec in enumerate(TOGETHER):
        names = {"z", "dx", "dresidual", "weight", "bias"}
        check(spec, [{name: f[f"{name} {number}"] for name in names} for f in found])
    parts = [batch(spec, rank) for spec in TOGETHER for rank in range(3)]
    mean, var = reference.population(np.concatenate([rows(b.x, b.mask) for b in parts]))
    for f in found:
        assert_close(f["running_mean"], mean, rtol=1e-10, atol=1e-10)
        assert_close(f["running_var"], var, rtol=1e-10, atol=1e-10)
        assert f["num_batches_tracked"] == 1
