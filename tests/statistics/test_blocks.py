"""Test what blocks have in common: nesting, copies, layers that others have changed, and torch.compile."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.exc import Unsupported
from torch._dynamo.utils import counters
from torch.testing import assert_close

import batchnorm as bn

KINDS = [bn.BatchNorm1d, nn.BatchNorm1d]
LENGTHS = torch.tensor([5, 2, 4])
BLOCKS: dict[str, Callable[[nn.Module], AbstractContextManager[None]]] = {
    "masked": lambda model: bn.masked(model, lengths=LENGTHS),
    "accumulate": bn.accumulate,
    "hold": bn.hold_statistics,
}


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_accumulation_within_accumulation_counts_once(kind):
    layer, x = kind(3, momentum=1.0), torch.randn(4, 6, 3)
    model = nn.Sequential(layer)
    with bn.accumulate(model):
        layer(x[0])
        with bn.accumulate(model):
            layer(x[1])
            layer(x[2])
        with pytest.raises(RuntimeError, match="mat1 and mat2"), bn.accumulate(model):
            torch.mm(layer(x[3]), x[3])
        assert layer.num_batches_tracked == 0
    assert layer.num_batches_tracked == 1
    assert_close(layer.running_mean, x[:3].flatten(0, 1).mean(0))
    assert_close(layer.running_var, x[:3].flatten(0, 1).var(0))


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_within_a_mask_is_the_one_that_counts(kind):
    layer, x = kind(3, momentum=1.0), torch.randn(3, 3, 5)
    model = nn.Sequential(layer)
    with bn.masked(model, lengths=LENGTHS):
        with bn.masked(model, mask=torch.tensor([True, False, False])):
            model(x)
        assert_close(layer.running_mean, x[0].mean(1))
        model(x)
    counted = torch.cat([sequence[:, :n] for sequence, n in zip(x, LENGTHS.tolist(), strict=True)], 1)
    assert_close(layer.running_mean, counted.mean(1))


@pytest.mark.parametrize("order", [("hold", "accumulate"), ("accumulate", "hold")])
@pytest.mark.parametrize("kind", KINDS)
def test_held_micro_batches_do_not_count(kind, order):
    model = nn.Sequential(kind(3))
    before = state(model)
    with BLOCKS[order[0]](model), BLOCKS[order[1]](model):
        model(torch.randn(4, 3))
    assert_close(state(model), before, rtol=0, atol=0)


@pytest.mark.parametrize("block", ["masked", "accumulate"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_made_within_a_block_has_no_part_in_it(kind, block):
    model, x = nn.Sequential(kind(3)), torch.randn(3, 3, 5)
    with BLOCKS[block](model):
        twin = copy.deepcopy(model)
    plain = nn.Sequential(nn.BatchNorm1d(3))
    assert_close(twin(x), plain(x))
    assert_close(state(twin), state(plain))
    assert "forward" not in vars(twin[0])


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_state_dict_within_a_block_is_that_of_the_layer(kind, block):
    model = nn.Sequential(kind(3))
    before = state(model)
    with BLOCKS[block](model):
        assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
        model.load_state_dict({**before, "0.weight": torch.full((3,), 2.0)})
        z = model.eval()(torch.ones(3, 3, 5))
    assert_close(z[0, 0, 0], torch.tensor(2.0), rtol=1e-4, atol=0)  # eps


def test_layers_shared_by_two_networks():
    shared = nn.BatchNorm1d(3)
    first, second = nn.Sequential(shared), nn.Sequential(nn.Identity(), shared)
    x = torch.randn(3, 3, 5)
    with bn.masked(first, lengths=LENGTHS), bn.accumulate(second):
        z = second(x)
    assert (z[1, :, 2:] == 0).all()
    assert shared.num_batches_tracked == 1
    assert "forward" not in vars(shared)


def test_a_forward_that_another_library_gave_to_the_layer_stays():
    layer = nn.BatchNorm1d(3)
    setattr(layer, "forward", partial(lambda layer, x: 2 * type(layer).forward(layer, x), layer))  # noqa: B010
    theirs = layer.forward
    x = torch.randn(3, 3, 5)
    with bn.masked(nn.Sequential(layer), lengths=LENGTHS):
        z = layer(x)
    assert layer.forward is theirs
    assert_close(z, 2 * bn.BatchNorm1d(3)(x, lengths=LENGTHS))


class ByHand(nn.BatchNorm1d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return (input - input.mean(0)) / input.std(0)


def test_a_layer_that_normalizes_by_its_own_code_is_refused():
    model = nn.Sequential(ByHand(3))
    with bn.accumulate(model), pytest.raises(bn.BatchNormError, match="ByHand does not call torch"):
        model(torch.randn(4, 3))


def test_a_wrong_number_of_channels_is_refused():
    layer = bn.BatchNorm1d(3, affine=False)
    with pytest.raises(RuntimeError, match="running_mean should contain 1 elements not 3"):
        layer(torch.randn(3, 1, 5), lengths=LENGTHS)


class Network(nn.Module):
    """A network whose forward has no loop, so that torch.compile can take the parts around a graph break."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv1d(3, 4, 3, padding=1), kind(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(x)).relu()


# torch looks at `.grad` of what flows over a break of the graph, and warns itself.
BREAKS = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@BREAKS
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_networks_take_part_in_blocks_and_compile_once(kind, block):
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = Network(kind)
    twin, x = copy.deepcopy(model), torch.randn(3, 3, 5)
    compiled = torch.compile(model, backend="eager")
    frames = []
    for _ in range(3):
        found = []
        for network, inner in ((compiled, model), (twin, twin)):
            with BLOCKS[block](inner):
                z = [network(x + shift) for shift in (0, 1)]
            found.append((*z, network(x)))  # behind the block the batch counts as always
        assert_close(*found)
        assert_close(state(model), state(twin))
        frames.append(counters["frames"]["total"])
    assert frames[1] == frames[2]  # no compilation in a later block


def fullgraph(layer: nn.Module, x: torch.Tensor, **named: torch.Tensor) -> torch.Tensor:
    torch._dynamo.reset()
    return torch.compile(layer, backend="eager", fullgraph=True)(x, **named)


@pytest.mark.parametrize("kind", KINDS)
def test_held_statistics_do_not_break_the_graph(kind):
    model, x = Network(kind), torch.randn(3, 3, 5)
    with bn.hold_statistics(model):
        assert_close(fullgraph(model, x), model(x))


def test_virtual_batches_do_not_break_the_graph():
    layer, x = bn.BatchNorm1d(3, virtual_batch_size=2), torch.randn(6, 3)
    twin = copy.deepcopy(layer)
    assert_close(fullgraph(layer, x), twin(x))
    assert_close(state(layer), state(twin))


def test_a_mask_breaks_the_graph():
    with pytest.raises(Unsupported, match="batch_norm"):
        fullgraph(bn.BatchNorm1d(3), torch.randn(3, 3, 5), lengths=LENGTHS)


@BREAKS
def test_a_layer_with_a_mask_of_its_own_compiles_around_it():
    torch._dynamo.reset()
    layer = bn.BatchNorm1d(3)
    twin, x = copy.deepcopy(layer), torch.randn(3, 3, 5)
    assert_close(torch.compile(layer, backend="eager")(x, lengths=LENGTHS), twin(x, lengths=LENGTHS))
    assert_close(state(layer), state(twin))
