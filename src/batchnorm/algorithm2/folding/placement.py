"""Decide where the affine map of each batch normalization goes, and move it there.

There are three ways, tried in this order:

1. Backward, into the calls that feed the batch normalization.
2. Forward, into the calls that it feeds.
3. Parallel, into a convolution of the same input whose output is added: BN(x) + conv(x), as in RepVGG.

Each way first lists edits and changes nothing. If it gets stuck, the next way is tried.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from ...graph.compare import largest_error
from ...graph.network import Network
from ...graph.ops import ARITHMETIC, DROPOUTS, SUMS, SUMS_AND_DIFFERENCES
from . import affine
from .affine import Affine
from .weights import Stuck, add_identity, normalization, scale_inputs, scale_outputs, set_parameters, statistics_device


class Edit(NamedTuple):
    """One change of the graph: the name of the layer that takes a map in ("" if none does), and how to make it."""

    into: str
    make: Callable[[], None]


class At(NamedTuple):
    """A map that must move on. It is at the output of `node`."""

    node: fx.Node
    map: Affine


class Term(NamedTuple):
    """A term of a sum, and its sign in that sum."""

    value: fx.Node
    sign: int


class Addition(NamedTuple):
    """A sum or difference, seen from one of its terms.

    Arguments:
        node: the sum or difference.
        sign: the sign of the term from which it is seen.
        other: the other term.
    """

    node: fx.Node
    sign: int
    other: Term


Change = Callable[[Network, fx.Node, Affine], tuple[Tensor, Tensor]]


class Composer:
    """Move the affine map of every batch normalization into the calls around it.

    After `run`, every batch normalization of the network is gone, except those that are in neither `into` nor `maps`.

    Arguments:
        network: the network, which `run` changes.

    Attributes:
        norms: the name of each batch normalization, in the order of the calls.
        into: for each that was folded, the names of the layers that took its map in.
        maps: the map of each that could not be folded. In the network it is one multiply-add.
        reasons: why a batch normalization was not folded.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self.norms: dict[fx.Node, str] = {}
        self.into: dict[fx.Node, tuple[str, ...]] = {}
        self.maps: dict[fx.Node, Affine] = {}
        self.reasons: dict[fx.Node, str] = {}

    def run(self) -> None:
        """Fold what can be folded, and write the other maps into the graph."""
        _drop_identities(self.network)
        for node in self.network.graph.nodes:
            if self.network.is_batch_norm(node) and not self.network.is_constant(node):
                self._find_map(node)
        for _ in range(2):  # after the first pass, a batch normalization may have another neighbor
            for node in list(self.maps):
                self._place(node)
        for node in self.maps:
            self._write(node)

    def _find_map(self, node: fx.Node) -> None:
        self.norms[node] = self.network.label(node)
        if not self.network.is_stock(node):
            self.reasons[node] = "has hooks"
        elif (map_ := normalization(self.network, node)) is None:
            self.reasons[node] = "normalizes by its own batch"
        else:
            self.maps[node] = map_

    def _place(self, node: fx.Node) -> None:
        source = self.network.input(node)
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
            self.into[node] = tuple(dict.fromkeys(edit.into for edit in edits if edit.into))
            self.network.remove(node, self.network.input(node))  # not `source`: an edit may have replaced it
            return
        self.reasons[node] = "; ".join(filter(None, reasons))

    # Backward

    def _into_sources(self, node: fx.Node, source: fx.Node) -> list[Edit]:
        return _walk(At(source, self.maps[node]), self._backward_from)

    def _backward_from(self, at: At) -> list[Edit | At]:
        """Return the steps that give `at.node` the effect of at.map at its output."""
        network, (node, after) = self.network, at
        if len(network.data_users(node)) > 1:
            raise Stuck(f"its input {network.label(node)} is used elsewhere")
        if node in self.maps:
            return [Edit(network.label(node), lambda: self._compose(node, after))]
        if network.is_affine(node):
            return [self._edit(node, scale_outputs, after)]
        if (combined := self._backward_arithmetic(node, after)) is not None:
            return combined
        inputs = affine.backward(network, node, after)
        if inputs is None:
            raise Stuck(f"it follows {network.described(node)}")
        return [At(source, before) for source, before in inputs.items()]

    def _compose(self, node: fx.Node, after: Affine) -> None:
        self.maps[node] = self.maps[node].then(after)

    def _backward_arithmetic(self, node: fx.Node, after: Affine) -> list[Edit | At] | None:
        """Return the steps through a sum, or through arithmetic with a constant. None for any other call."""
        network = self.network
        constant = _with_constant(network, node)
        if constant is not None:
            position, source, own = constant
            return [At(source, own.then(after)), self._bypass(node, position)]
        if network.op(node) not in SUMS or len(network.data_inputs(node)) != 2 or node.kwargs:
            return None
        first, second = network.data_inputs(node)
        if not network.same_shape(first, second, node):
            return None
        without_shift = Affine(after.scale, torch.zeros_like(after.shift))
        for term, skip in ((first, second), (second, first)):
            found = self._convolution_in(term, skip)
            if found is not None:  # a(conv(x) + x) + b, as in RepViT: a * x goes into the convolution
                signed = Affine(found.sign * after.scale, torch.zeros_like(after.shift))
                parallel = self._edit(found.value, add_identity, signed)
                return [At(term, after), parallel, self._bypass(node, node.args.index(term))]
        return [At(first, after), At(second, without_shift)]

    # Forward

    def _into_users(self, node: fx.Node, source: fx.Node) -> list[Edit]:
        others = [user for user in self.network.data_users(source) if user is not node]
        if any(self.network.mutates(user) for user in others):
            raise Stuck(f"{self.network.label(source)} is written to in place")
        seen: set[fx.Node] = set()
        return _walk(At(node, self.maps[node]), lambda at: self._forward_from(at, seen))

    def _forward_from(self, at: At, seen: set[fx.Node]) -> list[Edit | At]:
        """Return the steps with which every user of `at.node` does to x what it did to at.map(x)."""
        users = self.network.data_users(at.node)
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
        if user in self.maps and network.input_or_none(user) is node:
            return [Edit(network.label(user), lambda: self._precede(user, before))]
        if network.is_affine(user) and network.input_or_none(user) is node:
            if not network.is_stock(user):
                raise Stuck(f"it precedes {network.label(user)}, a subclass with a forward of its own")
            return [self._edit(user, scale_inputs, before)]
        constant = _with_constant(network, user)
        if constant is not None:
            position, _, own = constant
            return [At(user, before.then(own)), self._bypass(user, position)]
        after = affine.forward(network, user, node, before)
        if after is None:
            raise Stuck(f"it precedes {network.described(user)}")
        return [At(user, after)]

    def _precede(self, node: fx.Node, before: Affine) -> None:
        self.maps[node] = before.then(self.maps[node])

    # Parallel

    def _into_parallel(self, node: fx.Node, source: fx.Node) -> list[Edit]:
        """Return the edits that put the map into a convolution of the same input, BN(x) + conv(x)."""
        first = self._addition_around(node)
        if first.other.sign < 0:
            raise Stuck("")  # BN(x) - y would leave -y, and nothing can take that sign
        addition, sign = first, 1
        while (found := self._convolution_in(addition.other.value, source)) is None:
            sign *= addition.sign
            addition = self._addition_around(addition.node)
        # In the outer sum BN(x) has the sign `sign * addition.sign`, and the convolution the product of the others.
        sign *= addition.sign * addition.other.sign * found.sign
        map_ = Affine(sign * self.maps[node].scale, sign * self.maps[node].shift)
        bypass = self._bypass(first.node, first.node.args.index(first.other.value))
        return [self._edit(found.value, add_identity, map_), bypass]

    def _addition_around(self, node: fx.Node) -> Addition:
        """Return the sum or difference that is the only user of `node`."""
        if len(node.users) != 1:
            raise Stuck("")
        parent = next(iter(node.users))
        if self.network.op(parent) not in SUMS_AND_DIFFERENCES or len(parent.args) != 2 or parent.kwargs:
            raise Stuck("")
        first, second = parent.args
        other = second if first is node else first
        if other is node or not isinstance(other, fx.Node) or not self.network.same_shape(other, node):
            raise Stuck("")
        last_sign = -1 if self.network.op(parent) == "sub" else 1
        signs = (1, last_sign) if first is node else (last_sign, 1)
        return Addition(parent, signs[0], Term(other, signs[1]))

    def _convolution_in(self, value: Any, source: fx.Node) -> Term | None:
        """Return a convolution of `source` that is a term of the sum `value` and is used nowhere else."""
        network, waiting = self.network, [(value, 1)]
        while waiting:
            term, sign = waiting.pop()
            if not isinstance(term, fx.Node) or len(term.users) != 1:
                continue
            if network.is_affine(term) and network.input_or_none(term) is source and network.is_stock(term):
                return Term(term, sign)
            if network.op(term) in SUMS_AND_DIFFERENCES and len(term.args) == 2 and not term.kwargs:
                first, second = term.args
                waiting += [(second, -sign if network.op(term) == "sub" else sign), (first, sign)]
        return None

    # Edits

    def _bypass(self, node: fx.Node, position: int) -> Edit:
        """Replace a call by its argument at `position`. The argument is read when the edit is made."""
        return Edit("", lambda: self.network.remove(node, self.network.input(node, position)))

    def _edit(self, node: fx.Node, change: Change, map_: Affine) -> Edit:
        """Change the weight and bias of an affine call. Raise `Stuck` here, not when the edit is made."""
        network, layer = self.network, self.network.layer(node)
        weight, bias = change(network, node, map_)
        if layer is not None and not network.is_stock(node):
            self._try_subclass(node, layer, weight, bias, map_)
        return Edit(network.label(node), lambda: set_parameters(network, node, *change(network, node, map_)))

    def _try_subclass(self, node: fx.Node, layer: nn.Module, weight: Tensor, bias: Tensor, map_: Affine) -> None:
        """Raise `Stuck` unless the subclass gives the wanted output on noise: it may use its weight in any way."""
        before, after = (copy.deepcopy(layer).cpu().double() for _ in range(2))
        after.weight, after.bias = nn.Parameter(weight), nn.Parameter(bias)
        shape, generator = self.network.shape(self.network.input(node)), torch.Generator().manual_seed(0)
        noise = torch.rand(shape, dtype=torch.float64, generator=generator)
        with torch.no_grad():
            wanted = map_.scale * before(noise) + map_.shift
            if not largest_error(after(noise), wanted) < 1e-6:
                raise Stuck(f"{self.network.label(node)} is a subclass that is not affine in its weight")

    def _write(self, node: fx.Node) -> None:
        """Replace a batch normalization by scale * x + shift."""
        network, source = self.network, self.network.input(node)
        device, dtype = statistics_device(network, node), source.meta["value"].dtype
        owner = f"{self.norms[node]}." if network.layer(node) is not None else f"{node.name}_"
        with network.graph.inserting_before(node):
            scale, shift = (
                network.graph.get_attr(network.add_tensor(owner + part, values.to(device, dtype)))
                for part, values in (("scale", self.maps[node].scale), ("shift", self.maps[node].shift))
            )
            written = network.graph.call_function(torch.addcmul, (shift, source, scale))
        written.meta["value"] = node.meta["value"]
        network.remove(node, written)


def _walk(start: At, step: Callable[[At], list[Edit | At]]) -> list[Edit]:
    """Return the edits of all steps in order. Do not recurse: a network can be thousands of calls deep."""
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
    """Remove Identity, Dropout and x + 0, which do nothing in eval mode."""
    for node in list(network.graph.nodes):
        op, sources = network.op(node), node.all_input_nodes
        drops = network.layer(node) is None and network.argument(node, 2, "training", True) is not False
        idle = op == "identity" or (op in DROPOUTS and not drops)  # F.dropout drops by default
        zero = op == "add" and 0 in node.args
        if len(sources) == 1 and network.is_stock(node) and (idle or zero):
            network.remove(node, sources[0])


def _with_constant(network: Network, node: fx.Node) -> tuple[int, fx.Node, Affine] | None:
    """Return (position of x, x, map) if the call adds, subtracts, multiplies or divides x by a constant."""
    op = network.op(node)
    if op not in ARITHMETIC or node.kwargs or network.mutates(node) or len(node.args) != 2:
        return None
    first = node.args[0]
    swapped = op in ("add", "mul") and not (isinstance(first, fx.Node) and not network.is_constant(first))
    x, constant = reversed(node.args) if swapped else node.args
    if not isinstance(x, fx.Node) or network.is_constant(x) or not network.same_shape(x, node):
        return None
    number = isinstance(constant, int | float)
    value = torch.tensor(constant, dtype=torch.float64) if number else network.constant(constant)
    if value is None:
        return None
    value = value.detach().cpu().double()
    value = value.reshape([1] * (len(network.shape(x)) - value.dim()) + list(value.shape))
    one, zero = torch.ones_like(value), torch.zeros_like(value)
    scale, shift = {"add": (one, value), "sub": (one, -value), "mul": (value, zero)}.get(op, (1 / value, zero))
    map_ = Affine.of(scale, shift)
    return (int(swapped), x, map_) if map_.scale.shape[0] == map_.shift.shape[0] == 1 else None
