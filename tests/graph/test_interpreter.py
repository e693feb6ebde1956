"""Test that single calls run on chosen values, each call once."""

import pytest
import torch
from support.networks import Call
from torch import nn

from batchnorm.graph.interpreter import Interpreter, ancestors
from batchnorm.graph.trace import trace


class Counted(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += int(x.device.type == "cpu" and float(x.sum()) >= 0)  # reads a value, so that this stays one call
        return x + 1


@pytest.fixture
def network():
    def diamond(layers, x):
        y = layers["counted"](x)
        return y * y.exp() - y

    return trace(Call(diamond, counted=Counted()), torch.ones(3))


def test_a_call_that_is_needed_twice_runs_once(network):
    (x,), (result,) = (network.graph.find_nodes(op=op) for op in ("placeholder", "output"))
    counted = network.root.get_submodule("layers.counted")
    counted.calls = 0
    value = Interpreter(network.root, network.graph).evaluate(result, {x: torch.zeros(3)})
    torch.testing.assert_close(value, torch.full((3,), torch.e - 1))  # y = 1, y * e^y - y
    assert counted.calls == 1


def test_values_that_are_given_are_not_computed(network):
    (result,) = network.graph.find_nodes(op="output")
    counted = network.root.get_submodule("layers.counted")
    (call,) = (node for node in network.graph.nodes if network.layer(node) is counted)
    counted.calls = 0
    value = Interpreter(network.root, network.graph).evaluate(result, {call: torch.zeros(3)})
    assert torch.equal(value, torch.zeros(3))
    assert counted.calls == 0


def test_ancestors_stand_in_the_order_of_the_graph_and_end_at_what_is_known(network):
    nodes = list(network.graph.nodes)
    assert ancestors(nodes[-1]) == nodes
    assert ancestors(nodes[-1], known=nodes[:2]) == nodes[2:]
    assert ancestors(nodes[0], known=nodes) == []
