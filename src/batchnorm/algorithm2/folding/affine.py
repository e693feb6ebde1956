"""One affine map per channel, y = scale * x + shift, and how it goes through the calls of a network.

A map stands at a call's output. Moved backward it is taken in by what feeds the call, moved forward by what the call
feeds. Calls that only move values (reshape, permute, crop, concatenate) are run on the map itself, calls that average
on the numbers of its channels, so that no argument of theirs has to be understood twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ...graph.network import Network
from ...graph.ops import CROPS, RESHAPES

MOVES = (
    RESHAPES
    | CROPS
    | {"contiguous", "clone", "detach", "alias"}
    | {"permute", "transpose", "swapaxes", "movedim", "t", "cat", "concat"}
)
MOVES |= {"concatenate", "stack", "chunk", "split", "splitwithsizes", "unbind", "flip", "roll", "tensorsplit"}
MOVES |= {"channelshuffle", "pixelshuffle", "pixelunshuffle", "expand", "expandas", "repeat", "tile"}
AVERAGES = frozenset(
    {f"{kind}{rank}d" for kind in ("avgpool", "adaptiveavgpool", "upsamplenearest") for rank in (1, 2, 3)}
    | {"mean", "interpolate", "upsample", "upsamplebilinear2d", "upsamplebicubic2d", "upsamplelinear1d"}
)
SHAPED_LIKE = frozenset({"reshapeas", "viewas", "expandas"})  # take only the shape of their second argument
MAXIMA = frozenset({f"{kind}{rank}d" for kind in ("maxpool", "adaptivemaxpool") for rank in (1, 2, 3)} | {"amax"})

_EQUAL = 1e-12  # relative: what averaging equal doubles can lose


@dataclass(frozen=True)
class Affine:
    """y = scale * x + shift.

    Arguments:
        scale, shift: float64, of x's rank, with size 1 along every axis on which they are constant.
    """

    scale: Tensor
    shift: Tensor

    @classmethod
    def of(cls, scale: Tensor, shift: Tensor) -> Affine:
        """The map of two tensors of one shape, with the axes dropped along which they do not vary."""
        return cls(_compress(scale, 1.0), _compress(shift, 0.0))

    def then(self, after: Affine) -> Affine:
        """after(self(x))."""
        return Affine(self.scale * after.scale, self.shift * after.scale + after.shift)

    def vectors(self, axis: int, channels: int) -> tuple[Tensor, Tensor] | None:
        """scale and shift as (channels,) vectors along `axis`, or None if they vary along another one."""
        both = []
        for values in (self.scale, self.shift):
            others = [size for d, size in enumerate(values.shape) if d != axis % values.dim()]
            if any(size != 1 for size in others) or values.numel() not in (1, channels):
                return None
            both.append(values.reshape(-1).expand(channels))
        return both[0], both[1]


def data_inputs(network: Network, node: fx.Node) -> list[fx.Node]:
    """The tensors that a call takes its values from, seen through calls that give tuples (split, chunk)."""
    found: dict[fx.Node, None] = {}
    for source in node.all_input_nodes:
        if network.op(node) in SHAPED_LIKE and source is not network.input(node):
            continue
        if network.shape(source) is not None:
            found[source] = None
        elif _gives_tensors(source):
            found.update(dict.fromkeys(data_inputs(network, source)))
    return list(found)


def data_users(network: Network, node: fx.Node) -> list[fx.Node]:
    """The calls that take values from `node`: not those that read its shape; those behind a tuple instead of it."""
    users: list[fx.Node] = []
    for user in node.users:
        if network.op(user) in SHAPED_LIKE and node is not network.input(user):
            continue
        if user.op == "output" or network.shape(user) is not None:
            users.append(user)
        elif _gives_tensors(user):
            users.extend(user.users)
    return users


def forward(network: Network, node: fx.Node, source: fx.Node, before: Affine) -> Affine | None:
    """The map at the output of `node` that `before`, at its input `source`, becomes; None if it becomes no such map."""
    op, shape = network.op(node), network.shape(node)
    if shape is None or network.mutates(node) or not network.is_stock(node):
        return None
    if op in MOVES:
        after = _moved_forward(network, node, source, before)
        return after if after.scale.shape[:1] == after.shift.shape[:1] == (1,) else None
    if op in AVERAGES or (op in MAXIMA and bool((before.scale > 0).all())):
        for axis in range(1, before.scale.dim()):
            channels = network_shape(network, source)[axis]
            vectors, target = before.vectors(axis, channels), _averaged_axis(network, node, source, axis)
            if vectors is not None and target is not None:
                return _along(target, len(shape), vectors)
    return None


def backward(network: Network, node: fx.Node, after: Affine) -> dict[fx.Node, Affine] | None:
    """The maps at the inputs of `node` that together become `after` at its output; None if there are none."""
    op = network.op(node)
    if network.mutates(node) or not network.is_stock(node):
        return None
    if op in MOVES:
        return _moved_backward(network, node, after)
    source = network.input(node)
    if source is None or network.shape(source) is None:
        return None
    if op in AVERAGES or (op in MAXIMA and bool((after.scale > 0).all())):
        shape = network_shape(network, source)
        for axis in range(1, len(shape)):
            target = _averaged_axis(network, node, source, axis)
            vectors = None if target is None else after.vectors(target, shape[axis])
            if vectors is not None:
                return {source: _along(axis, len(shape), vectors)}
    return None


def network_shape(network: Network, node: fx.Node) -> torch.Size:
    shape = network.shape(node)
    assert shape is not None
    return shape


def _gives_tensors(node: fx.Node) -> bool:
    value = node.meta.get("value")
    return isinstance(value, tuple | list) and any(isinstance(item, Tensor) for item in value)


def _along(axis: int, rank: int, vectors: tuple[Tensor, Tensor]) -> Affine:
    shape = [-1 if d == axis else 1 for d in range(rank)]
    return Affine(vectors[0].reshape(shape), vectors[1].reshape(shape))


def _run(network: Network, node: fx.Node, values: dict[fx.Node, Tensor]) -> Tensor:
    """What `node` gives for `values` at its data inputs, running the calls between (split, chunk) as well."""
    known: dict[fx.Node, Any] = dict(values)
    for source in node.all_input_nodes:
        if source not in known and _gives_tensors(source):
            known[source] = network.run(source, known)
        elif source not in known and network.shape(source) is not None:
            known[source] = torch.empty(network_shape(network, source))
    return network.run(node, known)


def _moved_forward(network: Network, node: fx.Node, source: fx.Node, before: Affine) -> Affine:
    def moved(values: Tensor, elsewhere: float) -> Tensor:
        inputs = {
            other: torch.full(network_shape(network, other), elsewhere, dtype=torch.float64)
            for other in data_inputs(network, node)
        }
        inputs[source] = values.expand(network_shape(network, source))
        return _run(network, node, inputs)

    return Affine.of(moved(before.scale, 1.0), moved(before.shift, 0.0))


def _moved_backward(network: Network, node: fx.Node, after: Affine) -> dict[fx.Node, Affine] | None:
    sources = data_inputs(network, node)
    shapes = [network_shape(network, source) for source in sources]
    sizes = [shape.numel() for shape in shapes]
    numbers = torch.arange(sum(sizes), dtype=torch.float64).split(sizes)
    numbered = {source: n.reshape(shape) for source, n, shape in zip(sources, numbers, shapes, strict=True)}
    origin = _run(network, node, numbered).long()  # which input value each output value is
    parts = []
    for values in (after.scale, after.shift):
        wanted = values.expand(origin.shape)
        flat = torch.full((sum(sizes),), torch.nan, dtype=torch.float64)  # nan: cropped away, free
        flat[origin] = wanted
        if not torch.equal(flat[origin], wanted):
            return None  # one value is wanted in two ways
        parts.append([part.reshape(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)])
    maps = {source: Affine.of(*pair) for source, *pair in zip(sources, *parts, strict=True)}
    batchless = all(m.scale.shape[0] == m.shift.shape[0] == 1 for m in maps.values())
    return maps if batchless else None


def _averaged_axis(network: Network, node: fx.Node, source: fx.Node, axis: int) -> int | None:
    """The output axis on which the channels of the input's `axis` stand, if each is averaged by itself, weights 1."""
    shape = network_shape(network, source)
    labels = torch.arange(1.0, shape[axis] + 1, dtype=torch.float64)
    spread = labels.reshape([-1 if d == axis else 1 for d in range(len(shape))]).expand(shape)
    averaged = _compress(_run(network, node, {source: spread.contiguous()}), 0.0)
    varying = [d for d, size in enumerate(averaged.shape) if size > 1] or [axis if axis < averaged.dim() else 1]
    same = averaged.numel() == len(labels) and torch.allclose(averaged.reshape(-1), labels, rtol=1e-9)
    return varying[0] if same and len(varying) == 1 and varying[0] > 0 else None


def _compress(values: Tensor, free: float) -> Tensor:
    """Keep one value along every axis where all are equal; nan equals anything, and becomes `free` if alone."""
    for axis in range(values.dim()):
        low = torch.where(values.isnan(), torch.inf, values).amin(axis, keepdim=True)
        high = torch.where(values.isnan(), -torch.inf, values).amax(axis, keepdim=True)
        unknown = low > high
        if bool((unknown | (high - low <= _EQUAL * high.abs())).all()):
            values = torch.where(unknown, torch.nan, high)
    return torch.where(values.isnan(), free, values)
