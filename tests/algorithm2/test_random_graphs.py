"""Test on random graphs that fold, fuse and insert end and keep the function.

The graphs have sums, outputs with several users, shared layers and several results. Each function gets 1,000 of them,
and 250 under `make test`. The environment variable BATCHNORM_GRAPHS gives another number to `make test-all`.
"""

import copy
import os
import signal
from contextlib import contextmanager

import pytest
import torch
from support.networks import Call
from support.slow import slow
from torch import nn

import batchnorm as bn

GRAPHS, BLOCK = int(os.environ.get("BATCHNORM_GRAPHS", "1000")), 250
EXPORTED, SECONDS = 40, 20
CHANNELS, SHAPE = 4, (3, 4, 5, 5)
LAYERS = {
    "norm": lambda: nn.BatchNorm2d(CHANNELS),
    "fused": lambda: bn.BatchNorm2d(CHANNELS, activation="relu"),
    "conv": lambda: nn.Conv2d(CHANNELS, CHANNELS, 1),
    "padded": lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
    "double": lambda: nn.Conv2d(2 * CHANNELS, CHANNELS, 1),
}
FUNCTIONS = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "shift": lambda x: x + 0.5,
    "mirror": lambda x: x.flip(1),
}
TWO_INPUTS = ("add", "add", "add", "sub", "mul", "double")  # mostly sums, through which folding walks
ONE_INPUT = ("norm", "norm", "norm", "fused", "conv", "conv", "padded", "relu", "sigmoid", "shift", "mirror")


class RandomGraph(nn.Module):
    """Random calls, each of earlier values. A value without a user is an output."""

    def __init__(self, seed, symbolic=True):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)

        def one_of(many):
            return many[int(torch.randint(len(many), (), generator=draw))]

        self.symbolic = symbolic
        self.layers, self.calls = nn.ModuleDict(), []
        for value in range(1, 4 + seed % 9):
            kind = one_of(TWO_INPUTS if value > 1 and torch.rand((), generator=draw) < 0.45 else ONE_INPUT)
            recent = range(max(0, value - 4), value)
            inputs = [one_of(recent) for _ in range(2 if kind in TWO_INPUTS else 1)]
            self.calls.append((kind, str(value), inputs))
            shared = [name for name in self.layers if name.startswith(kind)]
            if kind in LAYERS and (not shared or torch.rand((), generator=draw) < 0.85):
                self.layers[f"{kind}{value}"] = LAYERS[kind]()
                shared = [f"{kind}{value}"]
            if kind in LAYERS:
                self.calls[-1] = (kind, one_of(shared), inputs)
        for tensor in [*self.parameters(), *(b for b in self.buffers() if b.is_floating_point())]:
            tensor.data.copy_(torch.rand(tensor.shape, generator=draw) + 0.25)
        read = {number for _, _, inputs in self.calls for number in inputs}
        self.outputs = [number for number in range(1, len(self.calls) + 1) if number not in read]

    def forward(self, x):
        if not self.symbolic and x.shape[1] != CHANNELS:  # this stops symbolic tracing, but not torch.export
            return x
        values = [x]
        for kind, name, inputs in self.calls:
            given = [values[number] for number in inputs]
            if kind in FUNCTIONS:
                values.append(FUNCTIONS[kind](*given))
            else:
                values.append(self.layers[name](torch.cat(given, 1) if kind == "double" else given[0]))
        return tuple(values[number] for number in self.outputs)


@contextmanager
def ends_within(seconds, what):
    def stop(*_):
        raise TimeoutError(f"{what} takes more than {seconds} s of the processor")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def networks(seed, symbolic=True):
    network = RandomGraph(seed, symbolic).double().eval()
    return network, torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_same(got, wanted, seed):
    """Compare relative to the largest value of all outputs, since one output may cancel to zero."""
    scale = max((float(theirs.abs().max()) for theirs in wanted), default=0.0)
    for ours, theirs in zip(got, wanted, strict=True):
        assert float((ours - theirs).abs().max()) <= 1e-10 * scale, f"graph {seed}"


@torch.no_grad()
def check_fold(seed, symbolic=True):
    network, x = networks(seed, symbolic)
    with ends_within(SECONDS, f"fold of graph {seed}"):
        result = bn.fold(network, x)
    calls = sum(kind in ("norm", "fused") for kind, _, _ in network.calls)
    assert len(result.rows) == calls
    assert_same(result.model(x), network(x), seed)


@torch.no_grad()
def check_fuse(seed):
    network, x = networks(seed)
    with ends_within(SECONDS, f"fuse of graph {seed}"):
        fused = bn.fuse(network, x).model
    assert list(fused.state_dict()) == list(network.state_dict())
    assert_same(fused(x), network(x), seed)
    theirs = copy.deepcopy(network).train()
    assert_same(fused.train()(x), theirs(x), seed)
    assert_same(fused.state_dict().values(), theirs.state_dict().values(), seed)


@torch.no_grad()
def check_insert(seed):
    network, x = networks(seed)
    with ends_within(SECONDS, f"insert of graph {seed}"):
        inserted = bn.insert(network, x, batches=[x]).model
    assert_same(inserted(x), network(x), seed)


@pytest.mark.parametrize("start", [0, *slow(*range(BLOCK, GRAPHS, BLOCK))])
@pytest.mark.parametrize("check", [check_fold, check_fuse, check_insert])
def test_random_graphs(check, start):
    for seed in range(start, min(start + BLOCK, GRAPHS)):
        check(seed)


def test_random_graphs_traced_by_export():
    for seed in range(EXPORTED):
        check_fold(seed, symbolic=False)


def sum_read_twice(layers, x):
    y = x + layers["first"](x)
    return y * y.sigmoid()


def residual_stream(layers, x):
    x = x + layers["first"](x.relu())
    return x + layers["second"](x.relu())


def sum_of_two(layers, x):
    y = layers["first"](x) + layers["second"](x)
    return y.relu() + y.sigmoid()


def shared_constants(layers, x):
    weight = layers["first"].weight
    for _ in range(60):  # 2^60 paths lead back to it
        weight = (weight + weight.sigmoid()) / 2
    return layers["second"](x) * weight[:, None, None]


def thousand_calls(layers, x):
    x = layers["conv"](x)
    for _ in range(1000):  # deeper than Python's stack
        x = x + 0.01
    return layers["first"](x)


@pytest.mark.parametrize(
    "forward", [sum_read_twice, residual_stream, sum_of_two, shared_constants, thousand_calls], ids=lambda f: f.__name__
)
@torch.no_grad()
def test_folding_ends(forward):
    layers = {"conv": nn.Conv2d(CHANNELS, CHANNELS, 1), "first": nn.BatchNorm2d(CHANNELS)}
    network = Call(forward, second=nn.BatchNorm2d(CHANNELS), **layers).double().eval()
    x = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with ends_within(SECONDS, forward.__name__):
        folded = bn.fold(network, x).model
    assert_same([folded(x)], [network(x)], forward.__name__)
