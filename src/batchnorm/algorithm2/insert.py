"""Algorithm 2, lines 1-5: BN before every nonlinearity that an affine layer feeds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal, get_args

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import BatchNormError, first_few
from ..graph.batches import check_batches, in_eval, run_batch
from ..graph.compare import largest_error, run
from ..graph.network import Network
from ..graph.ops import AFFINE_LAYERS
from ..graph.symbolic import TrainingFlag
from ..graph.trace import example_args, trace
from ..layers import BatchNorm1d, BatchNorm2d, BatchNorm3d
from ..moments import Moments
from .choices import Removable
from .results import format_table

Where = str | Collection[str] | Callable[[str, nn.Module | None], bool]

_OPS_OF: dict[str, frozenset[str]] = {
    "dropout": frozenset(
        {"dropout", "dropout1d", "dropout2d", "dropout3d", "alphadropout", "featuredropout", "featurealphadropout"}
    ),
    "lrn": frozenset({"localresponsenorm"}),
}


@dataclass(frozen=True)
class InsertRow:
    """What was done at one place of the network.

    Arguments:
        place: the affine layer, or the layer or call that was removed or skipped.
        action: "inserted", "removed" or "skipped".
        layer: the new BN's name.
        bias: of the affine layer: "dropped", "kept" or "none".
        note: the nonlinearity that is fed, why the place was skipped, why a bias was kept.
    """

    place: str
    action: Literal["inserted", "removed", "skipped"]
    layer: str = ""
    bias: str = ""
    note: str = ""


@dataclass(frozen=True)
class InsertResult:
    """What `insert` gives: the batch-normalized network, a row per place, and how well the function was kept.

    `max_error` is the largest difference to the old network on the example inputs, in eval mode, relative to the
    largest output; None without `keep_function`.
    """

    model: fx.GraphModule
    rows: tuple[InsertRow, ...]
    max_error: float | None = None

    def __str__(self) -> str:
        cells = [(r.place, r.action, r.layer, r.bias, r.note) for r in self.rows]
        table = format_table(("place", "action", "layer", "bias", "note"), cells)
        inserted = sum(row.action == "inserted" for row in self.rows)
        skipped = [f"{row.place}: {row.note}" for row in self.rows if row.action == "skipped"]
        why = "" if inserted else f": {first_few(skipped, 3) or 'the network has no nonlinearity'}"
        error = "" if self.max_error is None else f"\nlargest relative error: {self.max_error:.1e}"
        return f"{table}\n{inserted} inserted{why}{error}"


def insert(
    model: nn.Module,
    example_inputs: Any,
    *,
    where: Where | None = None,
    remove: Removable | Collection[Removable] = (),
    keep_function: Iterable[Any] | None = None,
) -> InsertResult:
    """Batch-normalize a network: z = g(Wu + b) becomes z = g(BN(Wu)) (Alg. 2, lines 1-5; Sec. 3.2).

    BN stands at the output of every Linear, Conv or transposed Conv that feeds a nonlinearity, directly or through
    reshaping, cropping and Dropout, be they layers, functions or methods; whatever took that output takes BN of it.
    It normalises per feature map, or per feature of a Linear, over all else. A layer that is called at several places
    gets a BN for each. Its bias is dropped where every use of it is cancelled by a BN.

    The result trains: it has the modes of `model` and the names of its parameters, so that an old checkpoint lacks
    the keys of the new layers only (dropped biases are over). `model` itself is not changed.

    Arguments:
        model: any network that `torch.fx` can trace.
        example_inputs: a tensor, a tuple of arguments, or a dict of named ones.
        where: narrows the places to those of a layer, or inside a module, of this name or one of these names; or to
            those where `where(name, layer)` is true, `layer` being None for a functional call.
        remove: "dropout", "lrn" (local response normalization) or both, to take out (Sec. 4.2.1).
        keep_function: batches (tensors, (input, ...) tuples or dicts) to measure each BN's input with. gamma and
            beta start at sqrt(var + eps) and mean, so that in eval mode the network computes what it did (Sec. 3.1),
            but for what `remove` took out. Without, gamma = 1 and beta = 0.

    Returns:
        The new network, and a row per place, which prints as a table: inserted, bias dropped, removed, skipped and why.

    Raises:
        BatchNormError: a network that cannot be traced, a name in `where` that holds no place, an unknown `remove`,
            example inputs or `keep_function` batches that it does not run on, that do not reach a BN or are not finite.
    """
    network = trace(model, example_inputs, trainable=True)
    removed = _remove(network, {remove} if isinstance(remove, str) else set(remove))
    places = _narrow(_find(network), where)
    chosen = [place for place in places if not place.reason]
    for place in chosen:
        _insert_at(network, place)
    _judge_biases(network, chosen)
    if keep_function is not None:
        _start_at_identity(network.as_module(), chosen, keep_function)
    for place in chosen:
        if place.bias == "dropped":
            _drop_bias(network, place)
    result = network.as_module()
    error = None if keep_function is None else _error(result, network, model, example_inputs)
    return InsertResult(result, (*removed, *(place.row() for place in places)), error)


@dataclass
class _Place:
    """A call to be followed by BN, or the reason why not."""

    node: fx.Node
    name: str
    layer: nn.Module | None
    weight: Tensor | None = None
    reason: str = ""
    note: str = ""
    bias: str = ""
    dropped: Tensor | None = None
    norm: str = ""
    norm_layer: _BatchNorm | None = None

    def row(self) -> InsertRow:
        if self.reason:
            return InsertRow(self.name, "skipped", note=self.reason)
        return InsertRow(self.name, "inserted", self.norm, self.bias, self.note)


# Finding


def _find(network: Network) -> list[_Place]:
    """Every place in the order of the calls: affine calls that feed a nonlinearity, and what is skipped."""
    places: dict[fx.Node, _Place] = {}
    for node in network.graph.nodes:
        layer = network.layer(node)
        if network.is_nonlinearity(node):
            source = network.source(node)
            if source is not None and network.is_affine(source):
                places.setdefault(source, _affine_place(network, source, node))
            else:
                reason = f"not fed by an affine layer, but by {_describe(network, source)}"
                places[node] = _Place(node, network.label(node), layer, reason=reason)
        elif layer is not None and any(isinstance(part, AFFINE_LAYERS) for part in list(layer.modules())[1:]):
            places[node] = _Place(node, network.label(node), layer, reason=f"{type(layer).__name__} is not looked into")
    return list(places.values())


def _describe(network: Network, source: fx.Node | None) -> str:
    if source is None:
        return "a constant"
    if network.is_batch_norm(source):
        return f"batch normalization {network.label(source)!r}"
    return "the network's input" if source.op == "placeholder" else network.label(source)


def _affine_place(network: Network, node: fx.Node, nonlinearity: fx.Node) -> _Place:
    weight = network.argument(node, 1, "weight")
    weight = weight if isinstance(weight, Tensor) else network.constant(weight)
    place = _Place(node, network.label(node), network.layer(node), weight)
    place.note = f"before {network.label(nonlinearity)}"
    shape = network.shape(node) or torch.Size()
    if weight is None:
        place.reason = "its weight is computed from the network's input"
    elif len(shape) < (2 if _is_linear(network, node) else weight.dim()):
        place.reason = f"its output {tuple(shape)} has no batch axis"
    return place


def _is_linear(network: Network, node: fx.Node) -> bool:
    return network.op(node) == "linear"


def _narrow(places: list[_Place], where: Where | None) -> list[_Place]:
    """Give those that `where` leaves out a reason to be skipped."""
    if where is None:
        return places
    wanted = where if callable(where) else _by_name({where} if isinstance(where, str) else where, places)
    for place in places:
        if not place.reason and not wanted(place.name, place.layer):
            place.reason = "left out by where"
    return places


def _by_name(names: Collection[str], places: list[_Place]) -> Callable[[str, nn.Module | None], bool]:
    known = [place.name for place in places if not place.reason]
    for name in names:
        if not any(_within(place, name) for place in known):
            raise BatchNormError(f"where={name!r} names no place for batch normalization; there are: {known}")
    return lambda place, _layer: any(_within(place, name) for name in names)


def _within(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}.")


# Changing


def _remove(network: Network, kinds: set[str]) -> list[InsertRow]:
    unknown = kinds - set(get_args(Removable))
    if unknown:
        raise BatchNormError(f"remove takes 'dropout' and 'lrn'; got {', '.join(map(repr, sorted(unknown)))}")
    ops = frozenset().union(*(_OPS_OF[kind] for kind in kinds))
    rows = []
    for node in list(network.graph.nodes):
        source = network.input(node)
        if network.op(node) in ops and source is not None:
            rows.append(InsertRow(network.label(node), "removed"))
            network.remove(node, source)
            if node.op == "call_module":
                _disown(network, str(node.target))
    for node in reversed(list(network.graph.nodes)):
        if not node.users and isinstance(network.layer(node), TrainingFlag):
            network.erase(node)
    return rows


def _insert_at(network: Network, place: _Place) -> None:
    """Let whoever took the output of `place` take BN of it."""
    node, shape, weight = place.node, network.shape(place.node), place.weight
    assert shape is not None
    assert weight is not None
    linear = _is_linear(network, node)
    dimensions = 2 if linear else len(shape)
    kind = {2: BatchNorm1d, 3: BatchNorm1d, 4: BatchNorm2d, 5: BatchNorm3d}[dimensions]
    norm = kind(shape[-1 if linear else 1], device=weight.device, dtype=weight.dtype)
    place.norm_layer = norm.train(network.root.training)
    place.norm = network.add_layer(f"{place.name}_bn", norm)
    users = set(node.users)
    if linear and len(shape) > 2:  # features are last, and all axes before them are the batch
        rows = _call_after(network, node, "call_method", "flatten", (node, 0, -2))
        norm_rows = _call_after(network, rows, "call_module", place.norm, (rows,))
        normal = _call_after(network, norm_rows, "call_method", "view_as", (norm_rows, node))
    else:
        normal = _call_after(network, node, "call_module", place.norm, (node,))
    node.replace_all_uses_with(normal, delete_user_cb=lambda user: user in users)


def _call_after(network: Network, node: fx.Node, kind: str, target: str, args: tuple[Any, ...]) -> fx.Node:
    with network.graph.inserting_after(node):
        return network.graph.create_node(kind, target, args)


# Biases


def _judge_biases(network: Network, places: list[_Place]) -> None:
    """Decide for every place whether BN cancels the bias wherever it is used; drop none yet."""
    normalized = {place.node for place in places}
    for place in places:
        bias = network.argument(place.node, 2, "bias")
        if bias is None:
            place.bias = "none"
            continue
        value = bias if isinstance(bias, Tensor) else network.constant(bias)
        stays = _why_bias_stays(network, place, value, normalized)
        place.bias = "kept" if stays else "dropped"
        place.note = f"{place.note}; {stays}" if stays else place.note
        place.dropped = None if stays or value is None else value.detach()


def _why_bias_stays(network: Network, place: _Place, bias: Tensor | None, normalized: set[fx.Node]) -> str:
    layer = place.layer
    if bias is None:
        return "its bias is computed from the network's input"
    if layer is None:
        return ""
    if not network.is_stock(place.node):
        return f"{type(layer).__name__} has a forward, hooks or a parametrization of its own"
    if any(network.layer(node) is layer and node not in normalized for node in network.graph.nodes):
        return "also called where no BN follows"
    if any(
        attrgetter(str(node.target))(network.root) is layer.bias for node in network.graph.find_nodes(op="get_attr")
    ):
        return "its bias is also used by itself"
    return ""


def _drop_bias(network: Network, place: _Place) -> None:
    if place.layer is not None:
        place.layer.register_parameter("bias", None)
        return
    bias = network.argument(place.node, 2, "bias")
    place.node.args = tuple(None if arg is bias else arg for arg in place.node.args)
    place.node.kwargs = {key: None if value is bias else value for key, value in place.node.kwargs.items()}
    if not bias.users:
        network.erase(bias)
        _disown(network, str(bias.target))


def _disown(network: Network, target: str) -> None:
    """Take a layer or parameter out of the network, if no call can reach it any more."""
    owner, _, name = target.rpartition(".")
    calls = [str(node.target) for node in network.graph.nodes if node.op in ("get_attr", "call_module")]
    if not any(_within(target, call) for call in calls):
        delattr(network.root.get_submodule(owner), name)


# Identity


def _start_at_identity(module: nn.Module, places: list[_Place], batches: Iterable[Any]) -> None:
    """Start every BN as y = x, at the moments that its input has in the network as it was."""
    check_batches(batches)
    measured: dict[nn.Module, Moments] = {}

    def measure(layer: nn.Module, args: tuple[Tensor], _output: Tensor) -> Tensor:
        moments = Moments.from_batch(args[0])
        measured[layer] = measured[layer].merge(moments) if layer in measured else moments
        return args[0]  # the layers behind see the network as it was

    hooks = [place.norm_layer.register_forward_hook(measure) for place in places if place.norm_layer is not None]
    try:
        with in_eval(module), torch.no_grad():
            for batch in batches:
                run_batch(module, batch)
    finally:
        for hook in hooks:
            hook.remove()
    for place in places:
        assert place.norm_layer is not None
        _set_identity(place, place.norm_layer, measured.get(place.norm_layer))


@torch.no_grad()
def _set_identity(place: _Place, norm: _BatchNorm, moments: Moments | None) -> None:
    if moments is None or moments.count < 2:
        raise BatchNormError(f"keep_function gives {place.name!r} less than two values per channel to measure")
    if not moments.m2.isfinite().all():
        raise BatchNormError(f"keep_function gives {place.name!r} values that are not finite; look for inf or NaN")
    assert norm.running_mean is not None
    assert norm.running_var is not None
    # The mean subtracted is that of Wu, which has no bias any more; beta gives back that of Wu + b.
    norm.running_mean.copy_(moments.mean if place.dropped is None else moments.mean - place.dropped.to(moments.mean))
    norm.running_var.copy_(moments.var(unbiased=True))
    norm.weight.copy_((norm.running_var.to(moments.mean) + norm.eps).sqrt())
    norm.bias.copy_(moments.mean)


def _error(result: nn.Module, network: Network, model: nn.Module, example_inputs: Any) -> float:
    """The largest relative difference of two networks in eval mode on the example inputs."""
    with in_eval(model), in_eval(result):
        return largest_error(run(result, network.inputs), run(model, example_args(model, example_inputs)))
