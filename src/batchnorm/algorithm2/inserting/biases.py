"""Decide which biases batch normalization cancels, and drop them (Sec. 3.2)."""

from __future__ import annotations

from operator import attrgetter
from typing import Literal, NamedTuple

from torch import Tensor, fx

from ...graph.interpreter import ancestors
from ...graph.network import Network
from .places import Place, within


class Bias(NamedTuple):
    """What becomes of the bias of an affine call.

    Arguments:
        outcome: "dropped", "kept", or "none" if there is no bias.
        reason: why it is kept, or "".
        dropped: the values of a bias that is dropped.
    """

    outcome: Literal["dropped", "kept", "none"]
    reason: str = ""
    dropped: Tensor | None = None


def judge(network: Network, places: list[Place]) -> list[Bias]:
    """Decide for every place whether BN cancels the bias wherever it is used. Change nothing."""
    normalized = {place.node for place in places}
    return [_judge(network, place, normalized) for place in places]


def drop(network: Network, place: Place) -> None:
    """Take the bias out of an affine call."""
    if place.layer is not None:
        place.layer.register_parameter("bias", None)
        return
    bias = network.argument(place.node, 2, "bias")
    place.node.args = tuple(None if arg is bias else arg for arg in place.node.args)
    place.node.kwargs = {key: None if value is bias else value for key, value in place.node.kwargs.items()}
    if isinstance(bias, fx.Node) and not bias.users:
        parameters = [str(source.target) for source in ancestors(bias) if source.op == "get_attr"]
        network.erase(bias)
        for parameter in parameters:
            disown(network, parameter)


def disown(network: Network, target: str) -> None:
    """Delete a layer or parameter from the network, unless a call can still reach it."""
    owner, _, name = target.rpartition(".")
    calls = [str(node.target) for node in network.graph.nodes if node.op in ("get_attr", "call_module")]
    if not any(within(target, call) for call in calls):
        delattr(network.root.get_submodule(owner), name)


def _judge(network: Network, place: Place, normalized: set[fx.Node]) -> Bias:
    bias = network.argument(place.node, 2, "bias")
    if bias is None:
        return Bias("none")
    value = network.constant(bias)
    if value is None:
        return Bias("kept", "its bias is computed from the network's input")
    reason = _why_kept(network, place, normalized)
    return Bias("kept", reason) if reason else Bias("dropped", dropped=value.detach())


def _why_kept(network: Network, place: Place, normalized: set[fx.Node]) -> str:
    layer = place.layer
    if layer is None:
        return ""
    if not network.is_stock(place.node):
        return f"{type(layer).__name__} has a forward, hooks or a parametrization of its own"
    if any(network.layer(node) is layer and node not in normalized for node in network.graph.nodes):
        return "also called where no BN follows"
    tensors = (attrgetter(str(node.target))(network.root) for node in network.graph.find_nodes(op="get_attr"))
    if any(tensor is layer.bias for tensor in tensors):
        return "its bias is also used by itself"
    return ""
