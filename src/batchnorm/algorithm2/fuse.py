"""Fuse batch normalizations with the additions and activations that follow them, for training."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import fx, nn

from ..errors import BatchNormError
from ..graph.compare import SAME, largest_error
from ..graph.network import Network
from ..graph.ops import FUSIBLE, MOVES, SUMS
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


@dataclass(frozen=True)
class FuseRow:
    """Tell what became of one batch normalization.

    Arguments:
        name: the name of the layer.
        outcome: "fused" with an addition, an activation or both; "swapped" for the layer of this package; "kept".
        reason: why it is not fused with an activation, or "".
        activation: the activation that it applies now, or None.
        residual: True if it adds a residual now, before the activation.
    """

    name: str
    outcome: FuseOutcome
    reason: str = ""
    activation: Activation | None = None
    residual: bool = False


@dataclass(frozen=True)
class FuseResult:
    """The network with fused layers, and what became of each batch normalization. Prints as a table.

    Arguments:
        model: the network: the same function, `state_dict` keys, order of parameters and modes. It trains the same.
        rows: one row per layer, in the order of the calls.

    Example:
        >>> import torch
        >>> import batchnorm as bn
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.BatchNorm1d(8))
        >>> print(bn.fuse(model, torch.randn(2, 8)))
        name  outcome  residual  activation  reason
        ----  -------  --------  ----------  -----------------
        0     fused              relu
        2     swapped                        output follows it
        1 fused, 1 swapped, 0 kept
    """

    model: fx.GraphModule
    rows: tuple[FuseRow, ...]

    @property
    def fused(self) -> int:
        """Return how many batch normalizations are fused with an addition or an activation."""
        return count(self.rows, "fused")

    @property
    def swapped(self) -> int:
        """Return how many batch normalizations are this package's layer now, with nothing else in it."""
        return count(self.rows, "swapped")

    @property
    def kept(self) -> int:
        """Return how many batch normalizations are as they were."""
        return count(self.rows, "kept")

    def __str__(self) -> str:
        cells = [(r.name, r.outcome, "yes" if r.residual else "", r.activation, r.reason) for r in self.rows]
        table = format_table(("name", "outcome", "residual", "activation", "reason"), cells)
        return f"{table}\n{self.fused} fused, {self.swapped} swapped, {self.kept} kept"


def fuse(model: nn.Module, example_inputs: Any) -> FuseResult:
    """Return a new model that trains faster, with each batch normalization and what follows it as one layer.

    z = g(BN(x) + residual) becomes one call of `bn.BatchNorm1d/2d/3d(activation=...)`, in training and in eval mode.
    The addition and the activation g are optional. Each alone reads what comes before it.

    - g is ReLU, leaky ReLU, ReLU6, sigmoid, SiLU, Hardswish or GELU, as a layer, a function or a method.
    - The addition is of two tensors of one shape, in place or not. Of two normalizations that meet in it, the one that
      runs later takes it.

    Each row has one of three outcomes:

    - "fused": BN with an addition, an activation or both. Layers that hold an activation, such as timm's
      BatchNormAct2d, count too.
    - "swapped": BN without those becomes the layer of this package, on the same kernels. An activation that the layer
      does not know, inside or behind it, stays behind it.
    - "kept": layers with hooks, frozen layers, SyncBatchNorm, and subclasses that do more.

    Arguments:
        model: any network whose forward has no Python control flow on values. It stays as it is.
        example_inputs: a tensor, a tuple or list of arguments, or a dict of named ones. An argument that is itself a
            list stands in a tuple: ([a, b],).

    Returns:
        The new model, and a row per batch normalization.

    Raises:
        BatchNormError: the network cannot be traced.

    Example:
        >>> import torch
        >>> import batchnorm as bn
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.SiLU())
        >>> result = bn.fuse(model, torch.randn(2, 3, 32, 32))
        >>> result.rows
        (FuseRow(name='1', outcome='fused', reason='', activation='silu', residual=False),)
    """
    network = trace(model, example_inputs, trainable=True)
    # The last call first: of two normalizations that meet in a sum, the later has the other's output at hand.
    rows = [_row(network, layer, calls) for layer, calls in reversed(_layers(network).items())]
    return FuseResult(network.finished(), tuple(reversed(rows)))


class _Kept(Exception):
    """A batch normalization stays as it is. The message says why."""


class _NotFollowed(Exception):
    """Nothing follows a call that could be fused with it. The message says why."""


class _Activation(NamedTuple):
    """The nonlinearity of a fused layer, and its slope if that is a leaky ReLU."""

    kind: Activation | None = None
    slope: float = 0.01


class _Followers(NamedTuple):
    """What follows one call of a batch normalization.

    Arguments:
        sum: the addition that alone reads it, or None.
        residual: the other tensor of the sum.
        act: the call of an activation that alone reads the sum, or the normalization.
        activation: what it computes.
        reason: why there is no activation.
    """

    sum: fx.Node | None = None
    residual: fx.Node | None = None
    act: fx.Node | None = None
    activation: _Activation = _Activation()
    reason: str = ""


class _Inside(NamedTuple):
    """What a subclass does after BN: a fusible activation, or one call that stays behind the layer."""

    activation: _Activation = _Activation()
    rest: fx.Node | None = None


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
        inside = _Inside() if type(layer) in _PLAIN else _inside(network, layer, calls[0])
    except (_Kept, BatchNormError) as kept:
        return FuseRow(name, "kept", str(kept))
    if inside.rest is not None:
        _swap(network, layer, _fused(layer, inside.activation))
        for call in calls:
            _put_behind(network, call, inside.rest)
        return FuseRow(name, "swapped", f"{_what(network, calls[0].next)} follows it")
    if inside.activation.kind is not None:
        _swap(network, layer, _fused(layer, inside.activation))
        return FuseRow(name, "fused", "", inside.activation.kind)
    return _fuse_followers(network, layer, calls, name)


def _fuse_followers(network: Network, layer: nn.Module, calls: list[fx.Node], name: str) -> FuseRow:
    """Put one layer in the place of a normalization and of what follows each of its calls."""
    followers = [_followers(network, call) for call in calls]
    activation, reason = followers[0].activation, next((each.reason for each in followers if each.reason), "")
    if any(each.activation != activation for each in followers):
        activation, reason = _Activation(), reason or "its calls are followed by different activations"
    _swap(network, layer, _fused(layer, activation))
    for call, each in zip(calls, followers, strict=True):
        if each.sum is not None:
            _drop_identities(network, call)
            each.sum.prepend(call)  # the residual is there by then
            call.args = (network.input(call), each.residual)
            network.remove(each.sum, call)
        if each.act is not None and activation.kind is not None:
            _drop_identities(network, call)
            network.remove(each.act, call)
    adds = any(each.sum is not None for each in followers)
    outcome = "fused" if adds or activation.kind is not None else "swapped"
    return FuseRow(name, outcome, reason, activation.kind, adds)


def _check_free(layer: nn.Module) -> None:
    """Raise `_Kept` if another layer would lose something, or gain nothing."""
    if any((layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)):
        raise _Kept("it has hooks")
    if statistics_frozen(layer) or affine_frozen(layer):
        raise _Kept("it is frozen")
    if (isinstance(layer, FusedBatchNorm) and layer._special) or "forward" in vars(layer):
        raise _Kept("it takes its statistics in another way")
    if isinstance(layer, FusedBatchNorm) and layer.activation is not None:
        raise _Kept(f"it is fused with {layer.activation} already")
    if isinstance(layer, FusedBatchNorm) and type(layer) not in _PLAIN:
        raise _Kept(f"{type(layer).__name__} is a subclass of the fused layer already")
    if not isinstance(layer, tuple(_FUSED)):
        raise _Kept(f"{type(layer).__name__} has no fused counterpart")


def _followers(network: Network, call: fx.Node) -> _Followers:
    """Return the addition and the activation that follow a call."""
    last, found = call, _Followers()
    try:
        user = _only_user(network, call)
        if network.is_batch_norm(user) and len(user.args) == 2:
            raise _NotFollowed(f"{network.label(user)} adds it")
        if network.op(user) in SUMS:
            found = found._replace(sum=user, residual=_residual(network, call, user))
            last = user
            user = _only_user(network, last)
        return found._replace(act=user, activation=_activation(network, user))
    except _NotFollowed as reason:
        return found._replace(reason=f"{reason}" if last is call else f"of the sum, {reason}")


def _only_user(network: Network, call: fx.Node) -> fx.Node:
    """Return the only user of the output. Skip Identity, which timm's networks have as a place for Dropout."""
    while True:
        users = list(call.users)
        if len(users) != 1:
            raise _NotFollowed("its output is used more than once")
        call = users[0]
        if network.op(call) != "identity" or not network.is_stock(call):
            return call


def _drop_identities(network: Network, call: fx.Node) -> None:
    while network.op(user := next(iter(call.users))) == "identity":
        network.remove(user, call)


def _residual(network: Network, call: fx.Node, total: fx.Node) -> fx.Node:
    """Return the tensor that `total` adds to the output of `call`. Raise `_NotFollowed` if the layer cannot add it."""
    terms = [each for each in total.args if isinstance(each, fx.Node)]
    if len(terms) != 2 or total.kwargs.get("alpha", 1) != 1:
        raise _NotFollowed("a sum of something else than two tensors follows it")
    others = [each for each in terms if not _is_output_of(network, each, call)]
    if len(others) != 1:
        raise _NotFollowed("it is added to itself")
    residual = others[0]
    if not network.depends_on_input(residual):  # a parameter (1, C, ...) has the shape of one example
        raise _NotFollowed("a sum with a constant follows it")
    if not network.same_shape(call, residual) or _dtype(call) != _dtype(residual):
        raise _NotFollowed("a sum with a tensor of another shape or dtype follows it")
    if total.args[0] is residual and network.mutates(total) and not _is_last_reader(network, total, residual):
        raise _NotFollowed("a sum follows it that changes a tensor in place")
    between = _between(call, total)
    if any(network.layer(node) is network.layer(call) for node in between):  # the running statistics have an order
        raise _NotFollowed("its next call comes before the sum that follows this one")
    source = _storage(network, network.input(call))
    if any(_storage(network, node) is source for node in between if _writes(network, node)):
        raise _NotFollowed("its input is changed in place before the sum that follows it")
    return residual


def _is_output_of(network: Network, node: fx.Node, call: fx.Node) -> bool:
    while node is not call and network.op(node) == "identity":
        node = network.input(node)
    return node is call


def _dtype(node: fx.Node) -> torch.dtype:
    return node.meta["value"].dtype


def _is_last_reader(network: Network, total: fx.Node, changed: fx.Node) -> bool:
    """Return True if nothing can see that `total` writes into `changed`."""
    own = changed.op.startswith("call") and network.op(changed) not in MOVES and not network.mutates(changed)
    earlier = {total, *_between(changed, total)}
    return own and all(user in earlier and network.op(user) not in MOVES for user in changed.users)


def _between(first: fx.Node, last: fx.Node) -> list[fx.Node]:
    nodes, node = [], first.next
    while node is not last:
        nodes.append(node)
        node = node.next
    return nodes


def _writes(network: Network, node: fx.Node) -> bool:
    return node.op.startswith("call") and network.mutates(node)


def _storage(network: Network, node: fx.Node) -> fx.Node:
    """Return the call whose output `node` shares, at most: views and calls in place are followed back."""
    while network.op(node) in MOVES or network.op(node) == "identity" or _writes(network, node):
        before = network.input_or_none(node)
        if before is None:
            break
        node = before
    return node


def _activation(network: Network, node: fx.Node) -> _Activation:
    kind = FUSIBLE.get(network.op(node))
    if kind is None or not network.is_stock(node):
        raise _NotFollowed(f"{_what(network, node)} follows it")
    if kind == "leaky_relu":
        return _Activation(kind, network.argument(node, 1, "negative_slope", 0.01))
    if kind == "gelu" and network.argument(node, None, "approximate", "none") == "tanh":
        return _Activation("gelu_tanh")
    return _Activation(kind)


def _what(network: Network, node: fx.Node) -> str:
    layer = network.layer(node)
    return type(layer).__name__ if layer is not None else network.op(node) or node.name


def _inside(network: Network, layer: nn.Module, call: fx.Node) -> _Inside:
    """Return what a subclass does after BN. Raise `_Kept` if that is more than an activation.

    The replacement is compared with the subclass on noise, in training and in eval mode.
    """
    source = network.input_or_none(call)
    if source is None or not network.gives_tensor(source):
        raise _Kept("it is not called with a tensor")
    noise = torch.randn(2, *network.shape(source)[1:], generator=torch.Generator().manual_seed(0))
    inside = trace(nn.Sequential(layer), noise)
    calls = [node for node in inside.graph.nodes if inside.op(node) not in ("", "identity", "batchnorm")]
    if len(calls) > 1:
        raise _Kept("it does more than BN")
    found = _Inside()
    try:
        found = _Inside(_activation(inside, calls[0])) if calls else found
    except _NotFollowed:
        found = _Inside(rest=calls[0])
    before, after = copy.deepcopy(layer), _fused(copy.deepcopy(layer), found.activation)
    rest = _alone(inside, found.rest)
    for training in (True, False):
        rest.train(training)
        with torch.no_grad():
            got, wanted = (rest(after.train(training)(noise)), before.train(training)(noise))
        if not largest_error((got, after.state_dict()), (wanted, before.state_dict())) <= SAME:
            more = f" and {found.activation.kind}" if found.activation.kind else ""
            raise _Kept(f"{type(layer).__name__} does more than BN{more}")
    return found


def _alone(network: Network, node: fx.Node | None) -> nn.Module:
    """Return one call of one tensor as a module, or Identity."""
    if node is None:
        return nn.Identity()
    graph = fx.Graph()
    given = graph.placeholder("x")
    if len(node.all_input_nodes) != 1:
        raise _Kept("it does more than BN")
    graph.output(graph.node_copy(node, lambda _: given))
    return fx.GraphModule(network.root, graph)


def _put_behind(network: Network, call: fx.Node, rest: fx.Node) -> None:
    """Call what a subclass did after BN behind its replacement, which owns the subclass's own layers."""
    target = f"{call.target}.{str(rest.target).partition('.')[2]}" if rest.op == "call_module" else rest.target
    args = fx.map_arg(rest.args, lambda _: call)
    kwargs = fx.map_arg(dict(rest.kwargs), lambda _: call)
    behind = network.call_after(call, rest.op, target, cast(Any, args), cast(Any, kwargs))
    behind.meta["value"] = call.meta["value"]
    call.replace_all_uses_with(behind, delete_user_cb=lambda user: user is not behind)


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
    if type(layer) not in _PLAIN:
        fused._modules.update(old._modules)
    fused.widen_statistics()
    fused.training = old.training
    return fused


def _swap(network: Network, layer: nn.Module, fused: nn.Module) -> None:
    """Replace a layer under all its names."""
    for name, found in list(network.root.named_modules(remove_duplicate=False)):
        if found is layer and name:
            network.root.set_submodule(name, fused)
