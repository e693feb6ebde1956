"""An affine map per channel, y = scale * x + shift, and how it passes the calls of a network.

A map belongs to the output of a call. Backward, it becomes a map of the call's inputs; forward, a map of the outputs
of the calls that follow. How a call treats a map is measured, so the meaning of its arguments is not repeated here:

- A call that moves values (reshape, permute, crop, concatenation) runs on the map itself.
- A call that averages runs on the numbers of the channels, which shows where each channel goes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ...graph.network import Network
from ...graph.ops import AVERAGES, MAXIMA, MOVES

_EQUAL = 1e-12  # relative: averaging equal doubles changes them by less


@dataclass(frozen=True)
class Affine:
    """The map y = scale * x + shift.

    Arguments:
        scale: float64, of the rank of x. It has size 1 along every axis on which it is constant.
        shift: as `scale`.
    """

    scale: Tensor
    shift: Tensor

    @classmethod
    def of(cls, scale: Tensor, shift: Tensor) -> Affine:
        """Return the map of two tensors, reduced to size 1 along every axis on which they are constant."""
        return cls(_compress(scale, 1.0), _compress(shift, 0.0))

    def then(self, after: Affine) -> Affine:
        """Return the map x -> after(self(x))."""
        return Affine(self.scale * after.scale, self.shift * after.scale + after.shift)

    def vectors(self, axis: int, channels: int) -> tuple[Tensor, Tensor] | None:
        """Return scale and shift along `axis`, (channels,) each, or None if they vary along another axis."""
        both = []
        for values in (self.scale, self.shift):
            others = [size for d, size in enumerate(values.shape) if d != axis % values.dim()]
            if any(size != 1 for size in others) or values.numel() not in (1, channels):
                return None
            both.append(values.reshape(-1).expand(channels))
        return both[0], both[1]


def forward(network: Network, node: fx.Node, source: fx.Node, before: Affine) -> Affine | None:
    """Move a map from an input of a call to its output.

    Arguments:
        network: the network.
        node: the call.
        source: the input at which the map is. Other inputs have no map.
        before: the map at `source`.

    Returns:
        The map `after` for which after(call(x)) = call(before(x)), or None if there is none.
    """
    op = network.op(node)
    if not network.gives_tensor(node) or network.mutates(node) or not network.is_stock(node):
        return None
    if op in MOVES:
        after = _moved_forward(network, node, source, before)
        return after if after.scale.shape[:1] == after.shift.shape[:1] == (1,) else None
    if op in AVERAGES or (op in MAXIMA and bool((before.scale > 0).all())):
        for axis in range(1, before.scale.dim()):
            vectors = before.vectors(axis, network.shape(source)[axis])
            target = _averaged_axis(network, node, source, axis)
            if vectors is not None and target is not None:
                return _along(target, len(network.shape(node)), vectors)
    return None


def backward(network: Network, node: fx.Node, after: Affine) -> dict[fx.Node, Affine] | None:
    """Move a map from the output of a call to its inputs.

    Returns:
        The map at each input. Together they have the effect of `after` at the output. None if there are no such maps.
    """
    op = network.op(node)
    if network.mutates(node) or not network.is_stock(node):
        return None
    if op in MOVES:
        return _moved_backward(network, node, after)
    source = network.input_or_none(node)
    if source is None or not network.gives_tensor(source):
        return None
    if op in AVERAGES or (op in MAXIMA and bool((after.scale > 0).all())):
        shape = network.shape(source)
        for axis in range(1, len(shape)):
            target = _averaged_axis(network, node, source, axis)
            vectors = None if target is None else after.vectors(target, shape[axis])
            if vectors is not None:
                return {source: _along(axis, len(shape), vectors)}
    return None


def _along(axis: int, rank: int, vectors: tuple[Tensor, Tensor]) -> Affine:
    shape = [-1 if d == axis else 1 for d in range(rank)]
    return Affine(vectors[0].reshape(shape), vectors[1].reshape(shape))


def _run(network: Network, node: fx.Node, values: dict[fx.Node, Tensor]) -> Tensor:
    """Run a call on `values` of its data inputs. Run the calls between them (split, chunk) too."""
    known: dict[fx.Node, Any] = dict(values)
    for source in node.all_input_nodes:
        if source not in known and network.gives_tuple_of_tensors(source):
            known[source] = network.run(source, known)
        elif source not in known and network.gives_tensor(source):
            known[source] = torch.empty(network.shape(source))
    return network.run(node, known)


def _moved_forward(network: Network, node: fx.Node, source: fx.Node, before: Affine) -> Affine:
    def moved(values: Tensor, elsewhere: float) -> Tensor:
        inputs = {
            other: torch.full(network.shape(other), elsewhere, dtype=torch.float64)
            for other in network.data_inputs(node)
        }
        inputs[source] = values.expand(network.shape(source))
        return _run(network, node, inputs)

    return Affine.of(moved(before.scale, 1.0), moved(before.shift, 0.0))


def _moved_backward(network: Network, node: fx.Node, after: Affine) -> dict[fx.Node, Affine] | None:
    sources = network.data_inputs(node)
    shapes = [network.shape(source) for source in sources]
    sizes = [shape.numel() for shape in shapes]
    numbers = torch.arange(sum(sizes), dtype=torch.float64).split(sizes)
    numbered = {source: n.reshape(shape) for source, n, shape in zip(sources, numbers, shapes, strict=True)}
    origin = _run(network, node, numbered).long()  # the number of the input value at each output
    parts = []
    for values in (after.scale, after.shift):
        wanted = values.expand(origin.shape)
        flat = torch.full((sum(sizes),), torch.nan, dtype=torch.float64)  # NaN: cropped away, any value will do
        flat[origin] = wanted
        if not torch.equal(flat[origin], wanted):
            return None  # one input value needs two different maps
        parts.append([part.reshape(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)])
    maps = {source: Affine.of(*pair) for source, *pair in zip(sources, *parts, strict=True)}
    batchless = all(m.scale.shape[0] == m.shift.shape[0] == 1 for m in maps.values())
    return maps if batchless else None


def _averaged_axis(network: Network, node: fx.Node, source: fx.Node, axis: int) -> int | None:
    """Return the output axis of the channels that the input has on `axis`.

    Return None unless the call averages each channel by itself, with weights that sum to 1.
    """
    shape = network.shape(source)
    labels = torch.arange(1.0, shape[axis] + 1, dtype=torch.float64)
    spread = labels.reshape([-1 if d == axis else 1 for d in range(len(shape))]).expand(shape)
    averaged = _compress(_run(network, node, {source: spread.contiguous()}), 0.0)
    varying = [d for d, size in enumerate(averaged.shape) if size > 1] or [axis if axis < averaged.dim() else 1]
    same = averaged.numel() == len(labels) and torch.allclose(averaged.reshape(-1), labels, rtol=1e-9)
    return varying[0] if same and len(varying) == 1 and varying[0] > 0 else None


def _compress(values: Tensor, free: float) -> Tensor:
    """Reduce every axis along which all values are equal to size 1.

    NaN stands for any value. Where nothing but NaN is left it becomes `free`.
    """
    for axis in range(values.dim()):
        low = torch.where(values.isnan(), torch.inf, values).amin(axis, keepdim=True)
        high = torch.where(values.isnan(), -torch.inf, values).amax(axis, keepdim=True)
        unknown = low > high
        if bool((unknown | (high - low <= _EQUAL * high.abs())).all()):
            values = torch.where(unknown, torch.nan, high)
    return torch.where(values.isnan(), free, values)
