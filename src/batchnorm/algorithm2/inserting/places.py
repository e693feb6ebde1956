"""Find the calls that batch normalization must follow: affine calls that feed a nonlinearity."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from ...errors import BatchNormError, did_you_mean
from ...graph.network import Network
from ...graph.ops import AFFINE_LAYERS

Where = str | Collection[str] | Callable[[str, nn.Module | None], bool]


@dataclass(frozen=True, eq=False)
class Place:
    """An affine call that BN will follow.

    Arguments:
        node: the call.
        name: the name of the layer, or of the call of a function.
        layer: the layer, or None for a function.
        weight: the weight. BN gets its device and dtype.
        nonlinearity: the name of a nonlinearity that the call feeds.
    """

    node: fx.Node
    name: str
    layer: nn.Module | None
    weight: Tensor
    nonlinearity: str


class Skipped(NamedTuple):
    """A call that BN will not follow, or a nonlinearity that no affine call feeds."""

    name: str
    reason: str


def find(network: Network) -> list[Place | Skipped]:
    """List the places and what is skipped, in the order of the calls."""
    found: dict[fx.Node, Place | Skipped] = {}
    for node in network.graph.nodes:
        layer = network.layer(node)
        if network.is_nonlinearity(node):
            source = network.source(node)
            if source is not None and network.is_affine(source):
                found.setdefault(source, _affine_place(network, source, node))
            else:
                reason = f"not fed by an affine layer, but by {network.described(source)}"
                found[node] = Skipped(network.label(node), reason)
        elif layer is not None and any(isinstance(part, AFFINE_LAYERS) for part in list(layer.modules())[1:]):
            found[node] = Skipped(network.label(node), f"the layers inside {type(layer).__name__} are not traced")
    return list(found.values())


def narrow(places: list[Place | Skipped], where: Where | None) -> list[Place | Skipped]:
    """Skip the places that `where` leaves out.

    Raises:
        BatchNormError: `where` has a name that is the name of no place, nor of a module that holds one.
    """
    if where is None:
        return places
    wanted = where if callable(where) else _by_name({where} if isinstance(where, str) else where, places)
    return [
        Skipped(place.name, "left out by where")
        if isinstance(place, Place) and not wanted(place.name, place.layer)
        else place
        for place in places
    ]


def within(name: str, path: str) -> bool:
    """Return True if the module `name` is `path` or inside it."""
    return name == path or name.startswith(f"{path}.")


def _affine_place(network: Network, node: fx.Node, nonlinearity: fx.Node) -> Place | Skipped:
    name, weight = network.label(node), network.constant(network.argument(node, 1, "weight"))
    if weight is None:
        return Skipped(name, "its weight is computed from the network's input")
    shape = network.shape(node) if network.gives_tensor(node) else torch.Size()
    if len(shape) < (2 if network.is_linear(node) else weight.dim()):
        return Skipped(name, f"its output {tuple(shape)} has no batch axis")
    return Place(node, name, network.layer(node), weight, network.label(nonlinearity))


def _by_name(names: Collection[str], places: list[Place | Skipped]) -> Callable[[str, nn.Module | None], bool]:
    known = [place.name for place in places if isinstance(place, Place)]
    paths = {place[:end] for place in known for end in (*(i for i, c in enumerate(place) if c == "."), len(place))}
    for name in names:
        if not any(within(place, name) for place in known):
            raise BatchNormError(
                f"where={name!r} names no place for batch normalization; there are: {known}{did_you_mean(name, paths)}"
            )
    return lambda place, _layer: any(within(place, name) for name in names)
