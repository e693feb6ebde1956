"""Batch normalizations of any network swapped for the fused layer, with the activation that follows or alone."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx, nn

from ..errors import BatchNormError
from ..functional import Activation
from ..graph.compare import largest_error
from ..graph.network import Network
from ..graph.trace import trace
from ..layers import BatchNorm1d, BatchNorm2d, BatchNorm3d, _FusedBatchNorm
from .freeze import affine_frozen, statistics_frozen
from .results import format_table

_FUSED = {
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
}
_PLAIN = frozenset({*_FUSED.keys(), *_FUSED.values()})
_ACTIVATIONS: dict[str, Activation] = {"relu": "relu", "leakyrelu": "leaky_relu", "sigmoid": "sigmoid"}
_SAME = 1e-5  # relative, of float32 sums taken in another order


@dataclass(frozen=True)
class FuseRow:
    """What became of one batch normalization.

    Arguments:
        name: of the layer.
        activation: what was fused into it, or None.
        reason: why there is no activation.
        swapped: whether it is the fused layer now, with an activation or alone.
    """

    name: str
    activation: Activation | None
    reason: str = ""
    swapped: bool = True


@dataclass(frozen=True)
class FuseResult:
    """A network with fused layers, and a row per batch normalization.

    Arguments:
        model: same function, same `state_dict` keys and parameter order, same modes, trains the same.
        rows: one per layer, in the order in which they run.
    """

    model: fx.GraphModule
    rows: tuple[FuseRow, ...]

    def __str__(self) -> str:
        cells = [(row.name, row.activation or ("alone" if row.swapped else "left"), row.reason) for row in self.rows]
        table = format_table(("batch normalization", "fused with", "why not"), cells)
        fused = sum(row.activation is not None for row in self.rows)
        left = sum(not row.swapped for row in self.rows)
        return f"{table}\n{fused} of {len(self.rows)} fused, {len(self.rows) - fused - left} alone, {left} left"


def fuse(model: nn.Module, example_inputs: Any) -> FuseResult:
    """Replace every batch normalization, and the activation that alone takes its output, by the fused layer.

    z = g(BN(x)), g a ReLU, leaky ReLU or sigmoid, as a layer, a function or a method, in training and in eval; layers
    that hold both already, such as timm's BatchNormAct2d, count too. A batch normalization that no such g follows
    becomes the layer alone, `activation=None`, on the same kernels. Left as they are: layers with hooks, frozen ones,
    SyncBatchNorm, and subclasses that do more. The model given is not changed.

    Arguments:
        model: any network whose forward does not depend on values in Python.
        example_inputs: a tensor, a tuple or list of arguments, or a dict of named ones.

    Returns:
        The network, and a row per batch normalization; prints as a table.

    Raises:
        BatchNormError: a network that cannot be traced.
    """
    network = trace(model, example_inputs, trainable=True)
    rows = [_row(network, layer, calls) for layer, calls in _layers(network).items()]
    fused = network.as_module()
    for node in fused.graph.nodes:
        node.meta.clear()
    return FuseResult(fused, tuple(rows))


def _layers(network: Network) -> dict[nn.Module, list[fx.Node]]:
    layers: dict[nn.Module, list[fx.Node]] = {}
    for node in network.graph.nodes:
        layer = network.layer(node)
        if layer is not None and network.is_batch_norm(node):
            layers.setdefault(layer, []).append(node)
    return layers


def _row(network: Network, layer: nn.Module, calls: list[fx.Node]) -> FuseRow:
    try:
        return _fuse_layer(network, layer, calls)
    except BatchNormError as error:
        return FuseRow(network.label(calls[0]), None, str(error), swapped=False)


def _fuse_layer(network: Network, layer: nn.Module, calls: list[fx.Node]) -> FuseRow:
    """Swap the layer, with its activation or alone; raise why it is left."""
    _check_free(layer)
    followers, reason = [], ""
    if type(layer) in _PLAIN:
        try:
            followers, (activation, slope) = _behind(network, calls)
        except BatchNormError as error:
            activation, slope, reason = None, 0.01, str(error)
    else:
        activation, slope = _inside(network, layer, calls[0])
        reason = "" if activation else f"{type(layer).__name__} adds no activation"
    _swap(network, layer, _fused(layer, activation, slope))
    for follower in followers:
        source = network.input(follower)
        assert source is not None
        network.remove(follower, source)
    return FuseRow(network.label(calls[0]), activation, reason)


def _check_free(layer: nn.Module) -> None:
    """Raise if swapping the layer would lose something, or give nothing."""
    if any((layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)):
        raise BatchNormError("it has hooks")
    if statistics_frozen(layer) or affine_frozen(layer):
        raise BatchNormError("it is frozen, and trains nothing that fusing would speed up")
    if isinstance(layer, _FusedBatchNorm) and layer.activation is not None:
        raise BatchNormError(f"it is fused with {layer.activation} already")
    if isinstance(layer, _FusedBatchNorm) and type(layer) not in _PLAIN:
        raise BatchNormError(f"{type(layer).__name__} is a subclass of the fused layer already")
    if not isinstance(layer, tuple(_FUSED)):
        raise BatchNormError(f"{type(layer).__name__} has no fused counterpart")


def _behind(network: Network, calls: list[fx.Node]) -> tuple[list[fx.Node], tuple[Activation, float]]:
    """The calls of the one activation that follows every call of the layer."""
    followers = [_follower(network, call) for call in calls]
    kinds = {_activation(network, follower) for follower in followers}
    if len(kinds) != 1:
        raise BatchNormError("its calls are followed by different activations")
    return followers, kinds.pop()


def _follower(network: Network, call: fx.Node) -> fx.Node:
    """What alone takes the output, behind any Identity (where timm's networks have room for Dropout)."""
    users = list(call.users)
    if len(users) != 1:
        raise BatchNormError("its output is used more than once")
    idle = network.op(users[0]) == "identity" and network.is_stock(users[0])
    return _follower(network, users[0]) if idle else users[0]


def _activation(network: Network, node: fx.Node) -> tuple[Activation, float]:
    activation = _ACTIVATIONS.get(network.op(node))
    if activation is None or not network.is_stock(node):
        what = type(network.layer(node)).__name__ if network.layer(node) is not None else network.op(node) or node.name
        raise BatchNormError(f"{what} follows it")
    slope = network.argument(node, 1, "negative_slope", 0.01) if activation == "leaky_relu" else 0.01
    return activation, slope


def _inside(network: Network, layer: nn.Module, call: fx.Node) -> tuple[Activation | None, float]:
    """The activation that a subclass adds, or None, if that is all it does; tried on noise in either mode."""
    source = network.input(call)
    shape = None if source is None else network.shape(source)
    if shape is None:
        raise BatchNormError("it is not called with a tensor")
    noise = torch.randn(2, *shape[1:], generator=torch.Generator().manual_seed(0))
    inside = trace(nn.Sequential(layer), noise)
    calls = [node for node in inside.graph.nodes if inside.op(node) not in ("", "identity")]
    calls = [node for node in calls if not inside.is_batch_norm(node)]
    if len(calls) > 1:
        raise BatchNormError("it does more than BN")
    activation, slope = _activation(inside, calls[0]) if calls else (None, 0.01)
    before, after = copy.deepcopy(layer), _fused(copy.deepcopy(layer), activation, slope)
    for training in (True, False):
        with torch.no_grad():
            got, wanted = ((each.train(training)(noise), each.state_dict()) for each in (after, before))
        if not largest_error(got, wanted) <= _SAME:
            raise BatchNormError(f"{type(layer).__name__} does more than BN{f' and {activation}' * bool(activation)}")
    return activation, slope


def _fused(layer: nn.Module, activation: Activation | None, slope: float) -> _FusedBatchNorm:
    """The fused layer around the parameters, buffers and mode of `layer`."""
    kind = next(kind for base, kind in _FUSED.items() if isinstance(layer, base))
    old = cast(nn.BatchNorm2d, layer)
    options = {"affine": False, "track_running_stats": False, "activation": activation, "negative_slope": slope}
    fused = kind(old.num_features, old.eps, old.momentum, **options)
    fused.affine, fused.track_running_stats = old.affine, old.track_running_stats
    fused._parameters.update(old._parameters)
    fused._buffers.update(old._buffers)
    fused._widen_statistics()
    return fused.train(old.training)


def _swap(network: Network, layer: nn.Module, fused: nn.Module) -> None:
    for name, found in list(network.root.named_modules(remove_duplicate=False)):
        if found is layer and name:
            network.root.set_submodule(name, fused)
