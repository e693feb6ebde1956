"""Run calls of a graph: one of them on chosen values, or all of them on the example inputs."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..torch_private import pytree
from .batches import in_eval
from .compare import Call


class Interpreter(fx.Interpreter):
    """Run single calls of a graph.

    Make one for many calls: `fx.Interpreter` lists all modules when it is made.
    """

    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        super().__init__(module, garbage_collect_values=False, graph=graph)

    @torch.no_grad()
    def evaluate(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        """Return the value of `node`.

        Arguments:
            node: the call to run. The calls that it depends on run before it, each once, unless `values` has them.
            values: the values that are known. Those of the calls that run are added.
        """
        self.env = values
        for each in ancestors(node, known=values):
            values[each] = self.run_node(each)
        return values[node]


def record(module: nn.Module, graph: fx.Graph, inputs: Call) -> None:
    """Run a graph in eval mode and store each call's output, on the meta device, in `node.meta["value"]`."""
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, inputs)  # the network may write into its inputs
    names = [str(node.target) for node in graph.find_nodes(op="placeholder")]
    given = args + tuple(kwargs[name] for name in names[len(args) :] if name in kwargs)
    with in_eval(module), torch.no_grad():
        _Recorder(module, graph=graph).run(*given)


class _Recorder(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        n.meta["value"] = on_meta(value)
        return value


def on_meta(value: Any) -> Any:
    """Replace every tensor in `value` by one without storage, on the meta device."""
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to("meta"), value)


def ancestors(node: fx.Node, known: Container[fx.Node] = ()) -> list[fx.Node]:
    """List `node` and all that it depends on, each once, in the order of the graph. Stop at nodes in `known`."""
    found = {node} if node not in known else set()
    waiting = list(found)
    while waiting:
        new = {source for source in waiting.pop().all_input_nodes if source not in known} - found
        found |= new
        waiting += new
    return sorted(found)
