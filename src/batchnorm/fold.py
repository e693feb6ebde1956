"""Algorithm 2, line 11, and beyond: batch normalization composed into its neighbours or left as one affine map."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from . import affine
from .absorb import Stuck, add_identity, normalization, scale_inputs, scale_outputs, set_parameters, statistics_device
from .affine import Affine, data_inputs, data_users
from .errors import BatchNormError
from .graph import Network, example_args, largest_error, trace
from .table import format_table

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


@dataclass(frozen=True)
class FoldResult:
    """A network without batch normalization, what became of each, and the error that was measured.

    Arguments:
        model: the folded network, in eval mode.
        rows: one per call of a batch normalization, in the order in which they run.
        max_error: the larger of the errors below.
        errors: by precision, the largest difference from the given network on the example inputs, relative to the
            largest output. "float64" runs both networks in double; it is missing if they do not run in double.
    """

    model: fx.GraphModule
    rows: tuple[FoldRow, ...]
    max_error: float
    errors: dict[str, float]

    @property
    def folded(self) -> int:
        """How many batch normalizations are gone."""
        return sum(row.outcome == "folded" for row in self.rows)

    def __str__(self) -> str:
        cells = [(row.name, row.outcome, ", ".join(row.into) or row.reason) for row in self.rows]
        table = format_table(("batch normalization", "outcome", "into, or why not"), cells)
        errors = ", ".join(f"{error:.1e} in {precision}" for precision, error in self.errors.items())
        return f"{table}\n{self.folded} of {len(self.rows)} folded; relative error {errors}"


def fold(model: nn.Module, example_inputs: Any, *, tolerance: float = 1e-4) -> FoldResult:
    """The inference network of Alg. 2, lines 8-12, with batch normalization composed into its neighbours.

    y = scale * x + shift, scale = gamma / sqrt(Var[x] + eps), shift = beta - scale * E[x] (line 11).

    Such a map goes into the convolutions and linear layers that feed it, or into those that it feeds, or into another
    batch normalization, through whatever passes it on: reshape, permute, crop, concatenation, average pooling,
    Dropout, constants added or multiplied. It goes only where the result is the same function: into no layer whose
    output is read elsewhere, and forward into no zero-padded convolution, whose border would see the wrong constant
    (torch.fx's `fuse` errs by 1.0 when one convolution is called twice: here each call gets its own weights).
    What cannot go anywhere is left as that one affine map; no running statistics survive.

    The model given is not changed and is treated as in eval mode. The folded one is a plain `torch.fx.GraphModule`,
    needs no import of this package, takes any batch size, and exports with `torch.export` and to ONNX.

    Arguments:
        model: any network of torch modules and functions.
        example_inputs: a tensor, a tuple or list of arguments, or a dict of named ones; the error is measured on them.
        tolerance: largest relative error allowed, in the network's own precision and in float64.

    Returns:
        The folded model, a row per batch normalization, and the measured error; prints as a table.

    Raises:
        BatchNormError: a network that cannot be traced, or an error above `tolerance`.
    """
    network = trace(model, example_inputs)
    rows = _Fold(network).run()
    folded = network.as_module()
    for node in folded.graph.nodes:
        node.meta.clear()
    errors = _measure(model, folded, example_args(model, example_inputs), network.inputs)
    worst = max(errors.values())
    if not worst <= tolerance:
        raise BatchNormError(
            f"folding {type(model).__name__} changed its output by {worst:.1e}, more than tolerance={tolerance:.1e}. "
            "The network may multiply small differences (allow more), or do what its graph does not show."
        )
    return FoldResult(folded, tuple(rows), worst, errors)


Edit = tuple[str, Callable[[], None]]  # what takes the map in, and how
Change = Callable[[Network, fx.Node, Affine], tuple[Tensor, Tensor]]
_SUMS = ("add", "iadd")
Call = tuple[tuple[Any, ...], dict[str, Any]]


class _Fold:
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
            found = normalization(self.network, node)
            if found is not None:
                self.maps[node] = found
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
            for _, edit in edits:
                edit()
            del self.maps[node]
            self.network.remove(node, self._input(node))  # not `source`: an edit may have replaced it
            return FoldRow(names[node], "folded", tuple(dict.fromkeys(name for name, _ in edits if name)))
        return FoldRow(names[node], "left", reason="; ".join(filter(None, reasons)))

    def _input(self, node: fx.Node) -> fx.Node:
        source = self.network.input(node)
        assert source is not None
        return source

    def _into_sources(self, node: fx.Node, source: fx.Node) -> list[Edit]:
        return self._backward(source, self.maps[node])

    def _backward(self, node: fx.Node, after: Affine) -> list[Edit]:
        """Edits that make `node` give after(node)."""
        network = self.network
        if len(data_users(network, node)) > 1:
            raise Stuck(f"its input {network.label(node)} is used elsewhere")
        if node in self.maps:
            return [(network.label(node), lambda: self._compose(node, after))]
        if network.is_affine(node):
            return [self._edit(node, scale_outputs, after)]
        if (combined := self._backward_arithmetic(node, after)) is not None:
            return combined
        inputs = affine.backward(network, node, after)
        if inputs is None:
            raise Stuck(f"it follows {_described(network, node)}")
        return [edit for source, before in inputs.items() for edit in self._backward(source, before)]

    def _compose(self, node: fx.Node, after: Affine) -> None:
        self.maps[node] = self.maps[node].then(after)

    def _backward_arithmetic(self, node: fx.Node, after: Affine) -> list[Edit] | None:
        network = self.network
        constant = _with_constant(network, node)
        if constant is not None:
            position, source, own = constant
            return [*self._backward(source, own.then(after)), self._bypass(node, position)]
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
                return [*self._backward(term, after), beside, self._bypass(node, node.args.index(term))]
        return self._backward(first, after) + self._backward(second, without_shift)

    def _into_users(self, node: fx.Node, source: fx.Node) -> list[Edit]:
        others = [user for user in data_users(self.network, source) if user is not node]
        if any(self.network.mutates(user) for user in others):
            raise Stuck(f"{self.network.label(source)} is written to in place")
        return self._forward(node, self.maps[node], set())

    def _forward(self, node: fx.Node, before: Affine, seen: set[fx.Node]) -> list[Edit]:
        """Edits that make every user of `node` do with x what it did with before(x)."""
        edits = []
        for user in data_users(self.network, node):
            if user in seen:
                raise Stuck(f"it reaches {self.network.label(user)} twice")
            seen.add(user)
            edits += self._forward_into(user, node, before, seen)
        if not edits:
            raise Stuck("nothing uses it")
        return edits

    def _forward_into(self, user: fx.Node, node: fx.Node, before: Affine, seen: set[fx.Node]) -> list[Edit]:
        network = self.network
        if user in self.maps and network.input(user) is node:
            return [(network.label(user), lambda: self._precede(user, before))]
        if network.is_affine(user) and network.input(user) is node:
            if not network.is_stock(user):
                raise Stuck(f"it precedes {network.label(user)}, a subclass with a forward of its own")
            return [self._edit(user, scale_inputs, before)]
        constant = _with_constant(network, user)
        if constant is not None:
            position, _, own = constant
            return [*self._forward(user, before.then(own), seen), self._bypass(user, position)]
        after = affine.forward(network, user, node, before)
        if after is None:
            raise Stuck(f"it precedes {_described(network, user)}")
        return self._forward(user, after, seen)

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
        parent = next(iter(node.users)) if len(node.users) == 1 else node
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
        network = self.network
        if not isinstance(term, fx.Node) or len(term.users) != 1:
            return None
        if network.is_affine(term) and network.input(term) is source and network.is_stock(term):
            return term, 1
        if network.op(term) not in (*_SUMS, "sub") or len(term.args) != 2 or term.kwargs:
            return None
        first, second = (self._addend(part, source) for part in term.args)
        if first is None and second is not None and network.op(term) == "sub":
            return second[0], -second[1]
        return first or second

    def _bypass(self, node: fx.Node, position: int) -> Edit:
        """The edit that gives the users of `node` its argument at `position`, as that is when the edit is made."""

        def edit() -> None:
            source = node.args[position]
            assert isinstance(source, fx.Node)
            self.network.remove(node, source)

        return "", edit

    def _edit(self, node: fx.Node, change: Change, map_: Affine) -> Edit:
        """The edit that puts `change` of its weight and bias into an affine call; tried before anything is changed."""
        network = self.network
        weight, bias = change(network, node, map_)
        if not network.is_stock(node):
            self._try_subclass(node, weight, bias, map_)
        return network.label(node), lambda: set_parameters(network, node, *change(network, node, map_))

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
    value = torch.tensor(constant) if isinstance(constant, int | float) else network.constant(constant)
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


@torch.no_grad()
def _measure(model: nn.Module, folded: nn.Module, given: Call, taken: Call) -> dict[str, float]:
    """The error of `folded` (called with `taken`) against `model` (with `given`) by precision, on two batch sizes."""
    original = copy.deepcopy(model).eval()
    errors = {_precision(original): _error(original, folded, given, taken)}
    with suppress(RuntimeError):  # a network that fixes the type of a tensor in its forward
        errors["float64"] = _error(original.double(), copy.deepcopy(folded).double(), _wide(given), _wide(taken))
    return errors


def _error(original: nn.Module, folded: nn.Module, given: Call, taken: Call) -> float:
    def run(module: nn.Module, call: Call) -> Any:
        args, kwargs = pytree.tree_map_only(Tensor, torch.clone, call)
        return module(*args, **kwargs)

    error = largest_error(run(folded, taken), run(original, given))
    try:
        wanted = run(original, _doubled(given))
    except Exception:
        return error  # the network itself takes no other batch size
    return max(error, largest_error(run(folded, _doubled(taken)), wanted))


def _precision(model: nn.Module) -> str:
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()} or {torch.get_default_dtype()}
    return str(min(dtypes, key=lambda dtype: dtype.itemsize)).removeprefix("torch.")


def _wide(call: Call) -> Call:
    return pytree.tree_map_only(Tensor, lambda x: x.double() if x.is_floating_point() else x, call)


def _doubled(call: Call) -> Call:
    return pytree.tree_map_only(Tensor, lambda x: torch.cat([x, x]) if x.dim() else x, call)
