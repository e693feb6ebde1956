"""Where the affine map of a batch normalization goes: into what feeds it, into what it feeds, or beside."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, fx, nn

from ...graph.compare import largest_error
from ...graph.network import Network
from . import affine
from .affine import Affine, data_inputs, data_users
from .weights import Stuck, add_identity, normalization, scale_inputs, scale_outputs, set_parameters, statistics_device

Outcome = Literal["folded", "left", "kept"]


@dataclass(frozen=True)
class FoldRow:
    """What became of one batch normalization.

    Arguments:
        name: of the layer (or of the call, for `F.batch_norm`).
        outcome: "folded" into a neighbour; "left" as one affine map; "kept", since it normalises by its own batch.
        into: the neighbours that took it in.
        reason: why it was not folded.
    """

    name: str
    outcome: Outcome
    into: tuple[str, ...] = ()
    reason: str = ""


class Edit(NamedTuple):
    """One change of the graph: the name of the layer that takes a map in ("" if none does), and how to make it."""

    into: str
    make: Callable[[], None]


class At(NamedTuple):
    """A map that still has to go on: it stands at the output of `node`."""

    node: fx.Node
    map: Affine


Change = Callable[[Network, fx.Node, Affine], tuple[Tensor, Tensor]]
_SUMS = ("add", "iadd")


class Composer:
    """Moves the affine map of every batch normalization in `network` to where it can be taken in."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.maps: dict[fx.Node, Affine] = {}

    def run(self) -> list[FoldRow]:
        _drop_identities(self.network)
        nodes = [node for node in self.network.graph.nodes if self._is_norm(node)]
        names = {node: self.network.label(node) for node in nodes}
        rows = {node: FoldRow(names[node], "kept", reason="normalises by its own batch") for node in nodes}
        for node in nodes:
            found = normalization(self.network, node) if self.network.is_stock(node) else None
            if found is not None:
                self.maps[node] = found
            elif not self.network.is_stock(node):
                rows[node] = FoldRow(names[node], "kept", reason="has hooks")
        for _ in range(2):  # what stood beside a batch normalization may stand beside a convolution now
            for node in list(self.maps):
                rows[node] = self._place(node, names)
        for node in self.maps:
            self._write(node, names[node])
        return list(rows.values())

    def _is_norm(self, node: fx.Node) -> bool:
        return self.network.is_batch_norm(node) and not self.network.is_constant(node)

    def _place(self, node: fx.Node, names: dict[fx.Node, str]) -> FoldRow:
        source = self._input(node)
        reasons = []
        for way in (self._into_sources, self._into_users, self._into_parallel):
            try:
                edits = way(node, source)
            except Stuck as stuck:
                reasons.append(str(stuck))
                continue
            for edit in edits:
                edit.make()
            del self.maps[node]
            self.network.remove(node, self._input(node))  # not `source`: an edit may have replaced it
            return FoldRow(names[node], "folded", tuple(dict.fromkeys(edit.into for edit in edits if edit.into)))
        return FoldRow(names[node], "left", reason="; ".join(filter(None, reasons)))

    def _input(self, node: fx.Node) -> fx.Node:
        source = self.network.input(node)
        assert source is not None
        return source

    def _into_sources(self, node: fx.Node, source: fx.Node) -> list[Edit]:
        return self._backward(source, self.maps[node])

    def _backward(self, node: fx.Node, after: Affine) -> list[Edit]:
        """Edits that make `node` give after(node)."""
        return _walk(At(node, after), self._backward_from)

    def _backward_from(self, at: At) -> list[Edit | At]:
        network, (node, after) = self.network, at
        if len(data_users(network, node)) > 1:
            raise Stuck(f"its input {network.label(node)} is used elsewhere")
        if node in self.maps:
            return [Edit(network.label(node), lambda: self._compose(node, after))]
        if network.is_affine(node):
            return [self._edit(node, scale_outputs, after)]
        if (combined := self._backward_arithmetic(node, after)) is not None:
            return combined
        inputs = affine.backward(network, node, after)
        if inputs is None:
            raise Stuck(f"it follows {_described(network, node)}")
        return [At(source, before) for source, before in inputs.items()]

    def _compose(self, node: fx.Node, after: Affine) -> None:
        self.maps[node] = self.maps[node].then(after)

    def _backward_arithmetic(self, node: fx.Node, after: Affine) -> list[Edit | At] | None:
        network = self.network
        constant = _with_constant(network, node)
        if constant is not None:
            position, source, own = constant
            return [At(source, own.then(after)), self._bypass(node, position)]
        if network.op(node) not in _SUMS or len(data_inputs(network, node)) != 2 or node.kwargs:
            return None
        first, second = data_inputs(network, node)
        if not network.shape(first) == network.shape(second) == network.shape(node):
            return None
        without_shift = Affine(after.scale, torch.zeros_like(after.shift))
        for term, skip in ((first, second), (second, first)):
            found = self._addend(term, skip)
            if found is not None:  # a(conv(x) + x) + b, as in RepViT: x goes into the convolution's own tap
                signed = Affine(found[1] * after.scale, torch.zeros_like(after.shift))
                beside = self._edit(found[0], add_identity, signed)
                return [At(term, after), beside, self._bypass(node, node.args.index(term))]
        return [At(first, after), At(second, without_shift)]

    def _into_users(self, node: fx.Node, source: fx.Node) -> list[Edit]:
        others = [user for user in data_users(self.network, source) if user is not node]
        if any(self.network.mutates(user) for user in others):
            raise Stuck(f"{self.network.label(source)} is written to in place")
        seen: set[fx.Node] = set()
        return _walk(At(node, self.maps[node]), lambda at: self._forward_from(at, seen))

    def _forward_from(self, at: At, seen: set[fx.Node]) -> list[Edit | At]:
        """What makes every user of `at.node` do with x what it did with at.map(x)."""
        users = data_users(self.network, at.node)
        if not users:
            raise Stuck("nothing uses it")
        steps: list[Edit | At] = []
        for user in users:
            if user in seen:
                raise Stuck(f"it reaches {self.network.label(user)} twice")
            seen.add(user)
            steps += self._forward_into(user, at)
        return steps

    def _forward_into(self, user: fx.Node, at: At) -> list[Edit | At]:
        network, (node, before) = self.network, at
        if user in self.maps and network.input(user) is node:
            return [Edit(network.label(user), lambda: self._precede(user, before))]
        if network.is_affine(user) and network.input(user) is node:
            if not network.is_stock(user):
                raise Stuck(f"it precedes {network.label(user)}, a subclass with a forward of its own")
            return [self._edit(user, scale_inputs, before)]
        constant = _with_constant(network, user)
        if constant is not None:
            position, _, own = constant
            return [At(user, before.then(own)), self._bypass(user, position)]
        after = affine.forward(network, user, node, before)
        if after is None:
            raise Stuck(f"it precedes {_described(network, user)}")
        return [At(user, after)]

    def _precede(self, node: fx.Node, before: Affine) -> None:
        self.maps[node] = before.then(self.maps[node])

    def _into_parallel(self, node: fx.Node, source: fx.Node) -> list[Edit]:
        """Into the tap of a convolution of the same input that reads where it writes: BN(x) + conv(x), as in RepVGG."""
        parent, other, sign, other_sign = self._sum_around(node)
        if other_sign < 0 or not isinstance(other, fx.Node):
            raise Stuck("")  # BN(x) - y: what is left would be -y
        removed, kept = parent, other
        while (found := self._addend(other, source)) is None:
            parent, other, outer, other_sign = self._sum_around(parent)
            sign *= outer
        convolution, own_sign = found
        sign *= other_sign * own_sign
        map_ = Affine(sign * self.maps[node].scale, sign * self.maps[node].shift)
        return [self._edit(convolution, add_identity, map_), self._bypass(removed, removed.args.index(kept))]

    def _sum_around(self, node: fx.Node) -> tuple[fx.Node, Any, int, int]:
        """The sum or difference that alone takes `node`, the other term, and the signs of the two."""
        if len(node.users) != 1:
            raise Stuck("")
        parent = next(iter(node.users))
        if self.network.op(parent) not in (*_SUMS, "sub") or len(parent.args) != 2 or parent.kwargs:
            raise Stuck("")
        first, second = parent.args
        other = second if first is node else first
        shape = self.network.shape(other) if isinstance(other, fx.Node) else None
        if other is node or shape != self.network.shape(node):
            raise Stuck("")
        last_sign = -1 if self.network.op(parent) == "sub" else 1
        return (parent, other, 1, last_sign) if first is node else (parent, other, last_sign, 1)

    def _addend(self, term: Any, source: fx.Node) -> tuple[fx.Node, int] | None:
        """A convolution of `source` among the terms of the sum `term`, read by nobody else, and its sign."""
        network, waiting = self.network, [(term, 1)]
        while waiting:
            term, sign = waiting.pop()
            if not isinstance(term, fx.Node) or len(term.users) != 1:
                continue
            if network.is_affine(term) and network.input(term) is source and network.is_stock(term):
                return term, sign
            if network.op(term) in (*_SUMS, "sub") and len(term.args) == 2 and not term.kwargs:
                first, second = term.args
                waiting += [(second, -sign if network.op(term) == "sub" else sign), (first, sign)]
        return None

    def _bypass(self, node: fx.Node, position: int) -> Edit:
        """The edit that gives the users of `node` its argument at `position`, as that is when the edit is made."""

        def edit() -> None:
            source = node.args[position]
            assert isinstance(source, fx.Node)
            self.network.remove(node, source)

        return Edit("", edit)

    def _edit(self, node: fx.Node, change: Change, map_: Affine) -> Edit:
        """The edit that puts `change` of its weight and bias into an affine call; tried before anything is changed."""
        network = self.network
        weight, bias = change(network, node, map_)
        if not network.is_stock(node):
            self._try_subclass(node, weight, bias, map_)
        return Edit(network.label(node), lambda: set_parameters(network, node, *change(network, node, map_)))

    def _try_subclass(self, node: fx.Node, weight: Tensor, bias: Tensor, map_: Affine) -> None:
        """A subclass may do with its weight what it likes: believe what it does on noise."""
        network, layer, source = self.network, self.network.layer(node), self.network.input(node)
        assert layer is not None
        assert source is not None
        before, after = (copy.deepcopy(layer).cpu().double() for _ in range(2))
        after.weight, after.bias = nn.Parameter(weight), nn.Parameter(bias)
        shape, generator = affine.network_shape(network, source), torch.Generator().manual_seed(0)
        noise = torch.rand(shape, dtype=torch.float64, generator=generator)
        with torch.no_grad():
            wanted = map_.scale * before(noise) + map_.shift
            if not largest_error(after(noise), wanted) < 1e-6:
                raise Stuck(f"{network.label(node)} is a subclass that is not affine in its weight")

    def _write(self, node: fx.Node, name: str) -> None:
        """Leave the map at `node` as scale * x + shift."""
        network, source = self.network, self.network.input(node)
        assert source is not None
        device, dtype = statistics_device(network, node), source.meta["value"].dtype
        owner = f"{name}." if network.layer(node) is not None else f"{node.name}_"
        with network.graph.inserting_before(node):
            scale, shift = (
                network.graph.get_attr(network.add_tensor(owner + part, values.to(device, dtype)))
                for part, values in (("scale", self.maps[node].scale), ("shift", self.maps[node].shift))
            )
            left = network.graph.call_function(torch.addcmul, (shift, source, scale))
        left.meta["value"] = node.meta["value"]
        network.remove(node, left)


def _walk(start: At, step: Callable[[At], list[Edit | At]]) -> list[Edit]:
    """The edits of all steps in their order; a list in place of recursion, since networks can be thousands deep."""
    edits: list[Edit] = []
    waiting: list[Edit | At] = [start]
    while waiting:
        first = waiting.pop()
        if isinstance(first, Edit):
            edits.append(first)
        else:
            waiting += reversed(step(first))
    return edits


def _drop_identities(network: Network) -> None:
    """Take out Identity, Dropout and x + 0, which do nothing in eval mode."""
    for node in list(network.graph.nodes):
        op, sources = network.op(node), node.all_input_nodes
        drops = network.layer(node) is None and network.argument(node, 2, "training", True) is not False
        idle = op == "identity" or ("dropout" in op and not drops)  # F.dropout drops unless it is told not to
        zero = op == "add" and 0 in node.args
        if len(sources) == 1 and network.is_stock(node) and (idle or zero):
            network.remove(node, sources[0])


def _with_constant(network: Network, node: fx.Node) -> tuple[int, fx.Node, Affine] | None:
    """(position of x, x, map) if the call is map(x): it adds, subtracts, multiplies or divides by a constant."""
    op = network.op(node)
    if op not in ("add", "sub", "mul", "div", "truediv") or node.kwargs or network.mutates(node) or len(node.args) != 2:
        return None
    first = node.args[0]
    swapped = op in ("add", "mul") and not (isinstance(first, fx.Node) and not network.is_constant(first))
    x, constant = reversed(node.args) if swapped else node.args
    if not isinstance(x, fx.Node) or network.is_constant(x) or network.shape(x) != network.shape(node):
        return None
    number = isinstance(constant, int | float)
    value = torch.tensor(constant, dtype=torch.float64) if number else network.constant(constant)
    if value is None:
        return None
    value = value.detach().cpu().double()
    value = value.reshape([1] * (len(affine.network_shape(network, x)) - value.dim()) + list(value.shape))
    one, zero = torch.ones_like(value), torch.zeros_like(value)
    scale, shift = {"add": (one, value), "sub": (one, -value), "mul": (value, zero)}.get(op, (1 / value, zero))
    map_ = Affine.of(scale, shift)
    return (int(swapped), x, map_) if map_.scale.shape[0] == map_.shift.shape[0] == 1 else None


def _described(network: Network, node: fx.Node) -> str:
    match node.op:
        case "placeholder":
            return f"the network's input {node.name}"
        case "output":
            return "the network's output"
        case "call_module":
            return f"{type(network.layer(node)).__name__} ({node.target})"
    return f"{network.op(node) or node.name}"
