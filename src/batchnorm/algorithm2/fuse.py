"""Fuse batch normalizations with the activations that follow them, for training."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import fx, nn

from ..errors import BatchNormError
from ..graph.compare import largest_error
from ..graph.network import Network
from ..graph.ops import FUSIBLE
from ..graph.trace import trace
from ..kernels.activation import Activation
from ..layers import BatchNorm1d, BatchNorm2d, BatchNorm3d, FusedBatchNorm
from .freeze import affine_frozen, statistics_frozen
from .results import count, format_table

FuseOutcome = Literal["fused", "swapped", "kept"]

_FUSED = {
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
}
_PLAIN = frozenset({*_FUSED.keys(), *_FUSED.values()})
_SAME = 1e-5  # relative: float32 sums in another order differ by less


@dataclass(frozen=True)
class FuseRow:
    """Tell what became of one batch normalization.

    Arguments:
        name: The name of the layer.
        outcome: "fused" with an activation; "swapped" for the layer of this package, without an activation; "kept".
        reason: Why it is not fused, or "".
        activation: The activation that it applies now, or None.
    """

    name: str
    outcome: FuseOutcome
    reason: str = ""
    activation: Activation | None = None


@dataclass(frozen=True)
class FuseResult:
    """The network with fused layers, and what became of each batch normalization. Prints as a table.

    Arguments:
        model: The network: the same function, `state_dict` keys, order of parameters and modes. It trains the same.
        rows: One row per layer, in the order of the calls.

    Example:
        >>> import torch
        >>> import batchnorm as bn
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.BatchNorm1d(8))
        >>> print(bn.fuse(model, torch.randn(2, 8)))
        name  outcome  activation  reason
        ----  -------  ----------  -----------------
        0     fused    relu
        2     swapped              output follows it
        1 fused, 1 swapped, 0 kept
    """

    model: fx.GraphModule
    rows: tuple[FuseRow, ...]

    @property
    def fused(self) -> int:
        """Return how many batch normalizations are fused with an activation."""
        return count(self.rows, "fused")

    @property
    def swapped(self) -> int:
        """Return how many batch normalizations are this package's layer now, without an activation."""
        return count(self.rows, "swapped")

    @property
    def kept(self) -> int:
        """Return how many batch normalizations are as they were."""
        return count(self.rows, "kept")

    def __str__(self) -> str:
        cells = [(row.name, row.outcome, row.activation, row.reason) for row in self.rows]
        table = format_table(("name", "outcome", "activation", "reason"), cells)
        return f"{table}\n{self.fused} fused, {self.swapped} swapped, {self.kept} kept"


def fuse(model: nn.Module, example_inputs: Any) -> FuseResult:
    """Return a new model that trains faster, with each batch normalization and its activation as one layer.

    z = g(BN(x)) becomes one `bn.BatchNorm1d/2d/3d(activation=...)`, in training and in eval mode. g is a ReLU, leaky
    ReLU or sigmoid, as a layer, a function or a method, and alone takes the output of BN.

    - "fused": BN with its activation. Layers that hold both, such as timm's BatchNormAct2d, count too.
    - "swapped": BN without such an activation becomes the layer of this package, on the same kernels.
    - "kept": layers with hooks, frozen layers, SyncBatchNorm, and subclasses that do more.

    Arguments:
        model: Any network whose forward has no Python control flow on values. It stays as it is.
        example_inputs: A tensor, a tuple or list of arguments, or a dict of named ones. An argument that is itself a
            list stands in a tuple: ([a, b],).

    Returns:
        The new model, and a row per batch normalization.

    Raises:
        BatchNormError: The network cannot be traced.

    Example:
        >>> import torch
        >>> import batchnorm as bn
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
        >>> result = bn.fuse(model, torch.randn(2, 3, 32, 32))
        >>> result.rows
        (FuseRow(name='1', outcome='fused', reason='', activation='relu'),)
    """
    network = trace(model, example_inputs, trainable=True)
    rows = tuple(_row(network, layer, calls) for layer, calls in _layers(network).items())
    return FuseResult(network.finished(), rows)


class _Kept(Exception):
    """A batch normalization stays as it is. The message says why."""


class _NotFollowed(Exception):
    """No activation follows a batch normalization that could be fused with it. The message says why."""


class _Activation(NamedTuple):
    """The nonlinearity of a fused layer, and its slope if that is a leaky ReLU."""

    kind: Activation | None = None
    slope: float = 0.01


def _layers(network: Network) -> dict[nn.Module, list[fx.Node]]:
    """Return the batch normalizations, each with its calls."""
    layers: dict[nn.Module, list[fx.Node]] = {}
    for node in network.graph.nodes:
        layer = network.layer(node)
        if layer is not None and network.is_batch_norm(node):
            layers.setdefault(layer, []).append(node)
    return layers


def _row(network: Network, layer: nn.Module, calls: list[fx.Node]) -> FuseRow:
    """Fuse or swap one layer, unless it must stay as it is."""
    name = network.label(calls[0])
    try:
        _check_free(layer)
        followers, activation, reason = _activation_of(network, layer, calls)
    except (_Kept, BatchNormError) as kept:
        return FuseRow(name, "kept", str(kept))
    _swap(network, layer, _fused(layer, activation))
    for follower in followers:
        network.remove(follower, network.input(follower))
    return FuseRow(name, "swapped" if activation.kind is None else "fused", reason, activation.kind)


def _check_free(layer: nn.Module) -> None:
    """Raise `_Kept` if another layer would lose something, or gain nothing."""
    if any((layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)):
        raise _Kept("it has hooks")
    if statistics_frozen(layer) or affine_frozen(layer):
        raise _Kept("it is frozen")
    if isinstance(layer, FusedBatchNorm) and layer.activation is not None:
        raise _Kept(f"it is fused with {layer.activation} already")
    if isinstance(layer, FusedBatchNorm) and type(layer) not in _PLAIN:
        raise _Kept(f"{type(layer).__name__} is a subclass of the fused layer already")
    if not isinstance(layer, tuple(_FUSED)):
        raise _Kept(f"{type(layer).__name__} has no fused counterpart")


def _activation_of(network: Network, layer: nn.Module, calls: list[fx.Node]) -> tuple[list[fx.Node], _Activation, str]:
    """Return the calls that fusing replaces, the activation, and why there is none."""
    if type(layer) not in _PLAIN:
        activation = _inside(network, layer, calls[0])
        return [], activation, "" if activation.kind else f"{type(layer).__name__} adds no activation"
    try:
        followers = [_follower(network, call) for call in calls]
        activations = {_activation(network, follower) for follower in followers}
    except _NotFollowed as reason:
        return [], _Activation(), str(reason)
    if len(activations) != 1:
        return [], _Activation(), "its calls are followed by different activations"
    return followers, activations.pop(), ""


def _follower(network: Network, call: fx.Node) -> fx.Node:
    """Return the only user of the output. Skip Identity, which timm's networks have as a place for Dropout."""
    while True:
        users = list(call.users)
        if len(users) != 1:
            raise _NotFollowed("its output is used more than once")
        call = users[0]
        if network.op(call) != "identity" or not network.is_stock(call):
            return call


def _activation(network: Network, node: fx.Node) -> _Activation:
    kind = FUSIBLE.get(network.op(node))
    if kind is None or not network.is_stock(node):
        layer = network.layer(node)
        what = type(layer).__name__ if layer is not None else network.op(node) or node.name
        raise _NotFollowed(f"{what} follows it")
    return _Activation(kind, network.argument(node, 1, "negative_slope", 0.01) if kind == "leaky_relu" else 0.01)


def _inside(network: Network, layer: nn.Module, call: fx.Node) -> _Activation:
    """Return the activation that a subclass adds. Raise `_Kept` if the subclass does more than that.

    The fused layer is compared with the subclass on noise, in training and in eval mode.
    """
    source = network.input_or_none(call)
    if source is None or not network.gives_tensor(source):
        raise _Kept("it is not called with a tensor")
    noise = torch.randn(2, *network.shape(source)[1:], generator=torch.Generator().manual_seed(0))
    inside = trace(nn.Sequential(layer), noise)
    calls = [node for node in inside.graph.nodes if inside.op(node) not in ("", "identity", "batchnorm")]
    if len(calls) > 1:
        raise _Kept("it does more than BN")
    try:
        activation = _activation(inside, calls[0]) if calls else _Activation()
    except _NotFollowed as reason:
        raise _Kept(str(reason)) from reason
    before, after = copy.deepcopy(layer), _fused(copy.deepcopy(layer), activation)
    for training in (True, False):
        with torch.no_grad():
            got, wanted = ((each.train(training)(noise), each.state_dict()) for each in (after, before))
        if not largest_error(got, wanted) <= _SAME:
            more = f" and {activation.kind}" if activation.kind else ""
            raise _Kept(f"{type(layer).__name__} does more than BN{more}")
    return activation


def _fused(layer: nn.Module, activation: _Activation) -> FusedBatchNorm:
    """Return a fused layer with the parameters, buffers and mode of `layer`."""
    kind = next(kind for base, kind in _FUSED.items() if isinstance(layer, base))
    old = cast(nn.BatchNorm2d, layer)
    fused = kind(
        old.num_features,
        old.eps,
        old.momentum,
        affine=False,
        track_running_stats=False,
        activation=activation.kind,
        negative_slope=activation.slope,
    )
    fused.affine, fused.track_running_stats = old.affine, old.track_running_stats
    fused._parameters.update(old._parameters)
    fused._buffers.update(old._buffers)
    fused.widen_statistics()
    return fused.train(old.training)


def _swap(network: Network, layer: nn.Module, fused: nn.Module) -> None:
    """Replace a layer under all its names."""
    for name, found in list(network.root.named_modules(remove_duplicate=False)):
        if found is layer and name:
            network.root.set_submodule(name, fused)
