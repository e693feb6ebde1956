"""How an affine map enters the weights of a convolution or linear layer, and which map a batch normalization is."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ...graph.network import Network
from .affine import Affine, network_shape


class Stuck(Exception):
    """A map cannot go this way; the message says why."""


def normalization(network: Network, node: fx.Node) -> Affine | None:
    """The map of a batch normalization in eval mode (Alg. 2, line 11), or None if it normalises by its own batch.

    scale = gamma / sqrt(Var[x] + eps), shift = beta - scale * E[x].
    """
    mean, var, weight, bias, by_batch, eps = _statistics(network, node)
    if mean is None or var is None or by_batch:
        return None
    scale = (_double(var) + eps).rsqrt()
    scale = scale if weight is None else scale * _double(weight)
    shift = -scale * _double(mean)
    shift = shift if bias is None else shift + _double(bias)
    shape = [1, -1] + [1] * (len(network_shape(network, node)) - 2)
    return Affine(scale.reshape(shape), shift.reshape(shape))


def statistics_device(network: Network, node: fx.Node) -> torch.device:
    mean = _statistics(network, node)[0]
    return torch.device("cpu") if mean is None else mean.device


def parameters(network: Network, node: fx.Node) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of an affine call, in double."""
    layer = network.layer(node)
    if layer is not None:
        weight, bias = layer.weight, layer.bias
        if "weight" not in layer._parameters:
            raise Stuck(f"the weight of {network.label(node)} is computed by a hook")
    else:
        weight, bias = (network.constant(network.argument(node, *place)) for place in (_WEIGHT, _BIAS))
        if bias is None and network.argument(node, *_BIAS) is not None:
            raise Stuck(f"the bias of {network.label(node)} is computed from the input")
    if not isinstance(weight, Tensor):
        raise Stuck(f"the weight of {network.label(node)} is computed from the input")
    return _double(weight), _double(bias) if isinstance(bias, Tensor) else None


def set_parameters(network: Network, node: fx.Node, weight: Tensor, bias: Tensor) -> None:
    """Give one affine call a weight and bias of its own; other calls of the same layer keep theirs."""
    layer = network.layer(node)
    if layer is not None:
        if network.calls(layer) > 1:
            layer = copy.deepcopy(layer)
            node.target = network.add_layer(str(node.target), layer)
        assert isinstance(layer.weight, Tensor)
        layer.bias = _parameter(bias, layer.weight)
        layer.weight = _parameter(weight, layer.weight)
        return
    name, like = network.label(node), network.constant(network.argument(node, *_WEIGHT))
    assert like is not None
    for place, values in ((_WEIGHT, weight), (_BIAS, bias)):
        _set_argument(network, node, place, f"{name}.{place[1]}", _parameter(values, like))


def scale_outputs(network: Network, node: fx.Node, after: Affine) -> tuple[Tensor, Tensor]:
    """Weight and bias with which the call gives after(y) where it gave y."""
    weight, bias = parameters(network, node)
    scale, shift = _vectors(network, node, after)
    bias = shift if bias is None else scale * bias + shift
    if not _is_transposed(network, node):
        return weight * scale.reshape(-1, *[1] * (weight.dim() - 1)), bias
    # (in, out / groups, ...): the output channels of one group stand on axis 1
    grouped = weight.reshape(_groups(network, node), -1, *weight.shape[1:])
    scale = scale.reshape(grouped.shape[0], 1, -1, *[1] * (weight.dim() - 2))
    return (grouped * scale).reshape(weight.shape), bias


def scale_inputs(network: Network, node: fx.Node, before: Affine) -> tuple[Tensor, Tensor]:
    """Weight and bias with which the call does to x what it did to before(x)."""
    weight, bias = parameters(network, node)
    source = network.input(node)
    assert source is not None
    scale, shift = _vectors(network, source, before, like=node)
    if bool(shift.any()) and _has_border(network, node):
        raise Stuck(f"it precedes {network.label(node)}, which would need another constant than zero at its border")
    if _is_transposed(network, node):
        added = torch.zeros(network_shape(network, node)[1], dtype=torch.float64)
        weight = weight * scale.reshape(-1, *[1] * (weight.dim() - 1))
    else:
        # (out, in / groups, ...): the input channels of one group stand on axis 1
        grouped = weight.reshape(_groups(network, node), -1, *weight.shape[1:])
        scale, shift = (v.reshape(grouped.shape[0], 1, -1, *[1] * (weight.dim() - 2)) for v in (scale, shift))
        added = (grouped * shift).flatten(2).sum(2).flatten()
        weight = (grouped * scale).reshape(weight.shape)
    return weight, added if bias is None else bias + added


def add_identity(network: Network, node: fx.Node, beside: Affine) -> tuple[Tensor, Tensor]:
    """Weight and bias with which the call gives y + beside(x) where it gave y of the same x.

    One tap of the kernel reads where the output is written; on it the map is a diagonal matrix.
    """
    weight, bias = parameters(network, node)
    tap = _own_tap(network, node)
    if tap is None:
        raise Stuck(f"{network.label(node)} has no tap that reads where it writes")
    scale, shift = _vectors(network, node, beside)
    channels = torch.arange(len(weight))
    weight = weight.clone()
    weight[(channels, channels % weight.shape[1], *tap)] += scale
    return weight, shift if bias is None else bias + shift


_WEIGHT, _BIAS = (1, "weight"), (2, "bias")


def _statistics(
    network: Network, node: fx.Node
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Any, bool, float]:
    """Mean, variance, weight, bias, whether it normalises by its own batch, and eps, of a batch normalization."""
    layer = network.layer(node)
    if layer is not None:
        return layer.running_mean, layer.running_var, layer.weight, layer.bias, False, layer.eps  # pyright: ignore
    # torch's function and operator, and F's, order them differently
    order = (1, 2, 3, 4) if node.target is F.batch_norm else (3, 4, 1, 2)
    names = ("running_mean", "running_var", "weight", "bias")
    found = [network.constant(network.argument(node, *place)) for place in zip(order, names, strict=True)]
    by_batch, eps = network.argument(node, 5, "training", False), network.argument(node, 7, "eps", 1e-5)
    return found[0], found[1], found[2], found[3], by_batch is not False, eps


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().double()


def _parameter(values: Tensor, like: Tensor) -> nn.Parameter:
    """`values` with the device, dtype and, if there are as many axes, memory format of `like`."""
    learned = isinstance(like, nn.Parameter) and like.requires_grad
    laid_out = torch.empty_like(like) if values.shape == like.shape else like.new_empty(values.shape)
    return nn.Parameter(laid_out.detach().copy_(values), requires_grad=learned)


def _set_argument(network: Network, node: fx.Node, place: tuple[int, str], path: str, values: nn.Parameter) -> None:
    owner = path.rpartition(".")[0]
    known = owner in dict(network.root.named_modules())
    with network.graph.inserting_before(node):
        given = network.graph.get_attr(network.add_tensor(path if known else path.replace(".", "_"), values))
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


def _vectors(network: Network, node: fx.Node, map_: Affine, like: fx.Node | None = None) -> tuple[Tensor, Tensor]:
    """The map at `node` per channel of the affine call `like` (or `node` itself)."""
    shape = network_shape(network, node)
    call = like or node
    weight, _ = parameters(network, call)
    axis = len(shape) - 1 if network.op(call) == "linear" else 1
    batched = network.op(call) == "linear" or weight.dim() == len(shape)
    vectors = map_.vectors(axis, shape[axis]) if batched else None
    if vectors is None:
        raise Stuck(f"the channels of {network.label(call)} do not stand where the map varies")
    return vectors


def _is_transposed(network: Network, node: fx.Node) -> bool:
    return "transpose" in network.op(node)


def _groups(network: Network, node: fx.Node) -> int:
    return 1 if network.op(node) == "linear" else network.argument(node, 6, "groups", 1)


def _has_border(network: Network, node: fx.Node) -> bool:
    """Whether some output of a convolution sees less of its input than the others."""
    if network.op(node) == "linear" or network.argument(node, None, "padding_mode", "zeros") != "zeros":
        return False
    padding = network.argument(node, 4, "padding", 0)
    if _is_transposed(network, node):
        return True
    return any(padding) if isinstance(padding, tuple | list) else padding not in (0, "valid")


def _own_tap(network: Network, node: fx.Node) -> tuple[int, ...] | None:
    """Index into the kernel of the tap that reads where the output is written, if shapes agree and there is one."""
    source = network.input(node)
    if source is None or network.shape(source) != network.shape(node) or _is_transposed(network, node):
        return None
    weight, _ = parameters(network, node)
    rank = weight.dim() - 2
    if rank == 0:
        return ()
    stride, padding, dilation = (
        _per_axis(network.argument(node, position, name, default), rank)
        for position, name, default in ((3, "stride", 1), (4, "padding", 0), (5, "dilation", 1))
    )
    if padding is None or stride != (1,) * rank or dilation is None:
        return None
    tap = tuple(p // d for p, d in zip(padding, dilation, strict=True))
    inside = all(t < size for t, size in zip(tap, weight.shape[2:], strict=True))
    exact = all(p % d == 0 for p, d in zip(padding, dilation, strict=True))
    return tap if inside and exact else None


def _per_axis(value: Any, rank: int) -> tuple[int, ...] | None:
    if isinstance(value, int):
        return (value,) * rank
    return tuple(value) * (rank if len(value) == 1 else 1) if isinstance(value, tuple | list) else None
