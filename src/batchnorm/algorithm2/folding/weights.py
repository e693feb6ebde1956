"""The affine map of a batch normalization, and how the weights of an affine layer take a map in.

An affine call is a Linear, a convolution or a transposed convolution, as a layer or as a function.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ...graph.network import Network
from ...torch_private import AnyBatchNorm
from .affine import Affine


class Stuck(Exception):
    """A map cannot go this way. The message says why."""


def normalization(network: Network, node: fx.Node) -> Affine | None:
    """Return the map of a batch normalization in eval mode (Alg. 2, line 11).

    scale = gamma / sqrt(Var[x] + eps), shift = beta - scale * E[x].

    Returns:
        The map, or None if the layer normalizes by the batch.
    """
    norm = _norm(network, node)
    if norm.mean is None or norm.var is None or norm.by_batch:
        return None
    scale = (_double(norm.var) + norm.eps).rsqrt()
    scale = scale if norm.gamma is None else scale * _double(norm.gamma)
    shift = -scale * _double(norm.mean)
    shift = shift if norm.beta is None else shift + _double(norm.beta)
    shape = [1, -1] + [1] * (len(network.shape(node)) - 2)
    return Affine(scale.reshape(shape), shift.reshape(shape))


def statistics_device(network: Network, node: fx.Node) -> torch.device:
    """Return the device of a batch normalization's running statistics."""
    mean = _norm(network, node).mean
    return torch.device("cpu") if mean is None else mean.device


def set_parameters(network: Network, node: fx.Node, weight: Tensor, bias: Tensor) -> None:
    """Give an affine call a new weight and bias. Other calls of the same layer keep theirs."""
    old, layer = _weight(network, node), network.own_layer(node)
    if layer is not None:
        layer.bias = _parameter(bias, old)
        layer.weight = _parameter(weight, old)
        return
    name = network.label(node)
    for place, values in ((_WEIGHT, weight), (_BIAS, bias)):
        _set_argument(network, node, place, f"{name}.{place[1]}", _parameter(values, old))


def scale_outputs(network: Network, node: fx.Node, after: Affine) -> tuple[Tensor, Tensor]:
    """Return the weight and bias with which an affine call gives after(y) instead of y."""
    weight, bias = _parameters(network, node)
    scale, shift = _vectors(network, node, after, at=node)
    bias = shift if bias is None else scale * bias + shift
    if not network.is_transposed(node):
        return weight * scale.reshape(-1, *[1] * (weight.dim() - 1)), bias
    # (in, out / groups, ...): axis 1 holds the output channels of one group
    grouped = weight.reshape(_groups(network, node), -1, *weight.shape[1:])
    scale = scale.reshape(grouped.shape[0], 1, -1, *[1] * (weight.dim() - 2))
    return (grouped * scale).reshape(weight.shape), bias


def scale_inputs(network: Network, node: fx.Node, before: Affine) -> tuple[Tensor, Tensor]:
    """Return the weight and bias with which an affine call gives for x what it gave for before(x)."""
    weight, bias = _parameters(network, node)
    scale, shift = _vectors(network, node, before, at=network.input(node))
    if bool(shift.any()) and _has_border(network, node):
        raise Stuck(f"it precedes {network.label(node)}, which would need another constant than zero at its border")
    if network.is_transposed(node):
        added = torch.zeros(network.shape(node)[1], dtype=torch.float64)
        weight = weight * scale.reshape(-1, *[1] * (weight.dim() - 1))
    else:
        # (out, in / groups, ...): axis 1 holds the input channels of one group
        grouped = weight.reshape(_groups(network, node), -1, *weight.shape[1:])
        scale, shift = (v.reshape(grouped.shape[0], 1, -1, *[1] * (weight.dim() - 2)) for v in (scale, shift))
        added = (grouped * shift).flatten(2).sum(2).flatten()
        weight = (grouped * scale).reshape(weight.shape)
    return weight, added if bias is None else bias + added


def add_identity(network: Network, node: fx.Node, parallel: Affine) -> tuple[Tensor, Tensor]:
    """Return the weight and bias with which an affine call gives y + parallel(x) instead of y.

    One element of the kernel reads x at the position of y. There the map is a diagonal matrix.
    """
    weight, bias = _parameters(network, node)
    element = _own_element(network, node)
    if element is None:
        raise Stuck(f"{network.label(node)} has no kernel element that reads x at the position of y")
    scale, shift = _vectors(network, node, parallel, at=node)
    channels = torch.arange(len(weight))
    weight = weight.clone()
    weight[(channels, channels % weight.shape[1], *element)] += scale
    return weight, shift if bias is None else bias + shift


class _Norm(NamedTuple):
    """The tensors and options of a batch normalization. `by_batch` is True if it ignores the running statistics."""

    mean: Tensor | None
    var: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None
    by_batch: bool
    eps: float


_WEIGHT, _BIAS = (1, "weight"), (2, "bias")  # position and name of an argument


def _norm(network: Network, node: fx.Node) -> _Norm:
    layer = network.layer(node)
    if isinstance(layer, AnyBatchNorm):
        return _Norm(layer.running_mean, layer.running_var, layer.weight, layer.bias, False, layer.eps)
    # F.batch_norm takes the statistics first; torch.batch_norm and the exported operator take gamma and beta first.
    positions = (1, 2, 3, 4) if node.target is F.batch_norm else (3, 4, 1, 2)
    names = ("running_mean", "running_var", "weight", "bias")
    mean, var, gamma, beta = (
        network.constant(network.argument(node, *place)) for place in zip(positions, names, strict=True)
    )
    by_batch = network.argument(node, 5, "training", False) is not False
    return _Norm(mean, var, gamma, beta, by_batch, network.argument(node, 7, "eps", 1e-5))


def _weight(network: Network, node: fx.Node) -> Tensor:
    """Return the weight of an affine call as it is stored."""
    layer = network.layer(node)
    if layer is None:
        weight, by = network.constant(network.argument(node, *_WEIGHT)), "from the input"
    else:
        weight, by = layer._parameters.get("weight"), "by a hook"
    if weight is None:
        raise Stuck(f"the weight of {network.label(node)} is computed {by}")
    return weight


def _parameters(network: Network, node: fx.Node) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of an affine call in double precision."""
    weight, bias = _double(_weight(network, node)), network.argument(node, *_BIAS)
    if bias is None:
        return weight, None
    value = bias if isinstance(bias, Tensor) else network.constant(bias)
    if value is None:
        raise Stuck(f"the bias of {network.label(node)} is computed from the input")
    return weight, _double(value)


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().double()


def _parameter(values: Tensor, like: Tensor) -> nn.Parameter:
    """Return `values` with the device and dtype of `like`, and of the same shape with its memory format too."""
    learned = isinstance(like, nn.Parameter) and like.requires_grad
    laid_out = torch.empty_like(like) if values.shape == like.shape else like.new_empty(values.shape)
    return nn.Parameter(laid_out.detach().copy_(values), requires_grad=learned)


def _set_argument(network: Network, node: fx.Node, place: tuple[int, str], path: str, values: nn.Parameter) -> None:
    """Give a function a new parameter as its argument at `place`. Own it as `path`."""
    path = path if _has_module(network.root, path.rpartition(".")[0]) else path.replace(".", "_")
    with network.graph.inserting_before(node):
        given = network.graph.get_attr(network.add_tensor(path, values))
    given.meta["value"] = values.detach().to("meta")
    position, name = place
    before = network.argument(node, position, name)
    if len(node.args) > position:
        node.update_arg(position, given)
    elif len(node.args) == position and name not in node.kwargs:
        node.args = (*node.args, given)
    else:
        node.update_kwarg(name, given)
    if isinstance(before, fx.Node) and not before.users and network.is_constant(before):
        network.erase(before)


def _has_module(root: nn.Module, path: str) -> bool:
    try:
        root.get_submodule(path)
    except AttributeError:
        return False
    return True


def _vectors(network: Network, call: fx.Node, map_: Affine, *, at: fx.Node) -> tuple[Tensor, Tensor]:
    """Return scale and shift per channel of the affine call, (C,) each, of a map at its input or output `at`."""
    shape = network.shape(at)
    linear = network.is_linear(call)
    axis = len(shape) - 1 if linear else 1
    batched = linear or _weight(network, call).dim() == len(shape)
    vectors = map_.vectors(axis, shape[axis]) if batched else None
    if vectors is None:
        raise Stuck(f"the channels of {network.label(call)} do not stand where the map varies")
    return vectors


def _groups(network: Network, node: fx.Node) -> int:
    return 1 if network.is_linear(node) else network.argument(node, 6, "groups", 1)


def _has_border(network: Network, node: fx.Node) -> bool:
    """Return True if some outputs of a convolution read fewer inputs than others do."""
    if network.is_linear(node) or network.argument(node, None, "padding_mode", "zeros") != "zeros":
        return False
    padding = network.argument(node, 4, "padding", 0)
    if network.is_transposed(node):
        return True
    return any(padding) if isinstance(padding, tuple | list) else padding not in (0, "valid")


def _own_element(network: Network, node: fx.Node) -> tuple[int, ...] | None:
    """Return the index of the kernel element that reads x at the position of y, or None if there is none."""
    source = network.input_or_none(node)
    if source is None or not network.same_shape(source, node) or network.is_transposed(node):
        return None
    kernel = _weight(network, node).shape[2:]
    rank = len(kernel)
    if rank == 0:
        return ()
    stride, padding, dilation = (
        _per_axis(network.argument(node, position, name, default), rank)
        for position, name, default in ((3, "stride", 1), (4, "padding", 0), (5, "dilation", 1))
    )
    if padding is None or stride != (1,) * rank or dilation is None:
        return None
    element = tuple(p // d for p, d in zip(padding, dilation, strict=True))
    inside = all(index < size for index, size in zip(element, kernel, strict=True))
    exact = all(p % d == 0 for p, d in zip(padding, dilation, strict=True))
    return element if inside and exact else None


def _per_axis(value: Any, rank: int) -> tuple[int, ...] | None:
    if isinstance(value, int):
        return (value,) * rank
    return tuple(value) * (rank if len(value) == 1 else 1) if isinstance(value, tuple | list) else None
