"""Loss and gradients of a network of Linear, BatchNorm1d and Sigmoid, by the chain rule as Sec. 3 writes it.

At 60 x 100 values autograd's graph, built and walked at every step, costs about a sixth of the time of the same
operations called one by one (three runs, both networks, one thread); tests hold these to autograd's numbers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...layers import BatchNorm1d


@torch.no_grad()
def loss_and_gradients(model: nn.Sequential, x: Tensor, labels: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Mean cross-entropy of the network in training mode, and its gradient by every parameter.

    BN layers normalise by the batch and move their running statistics, as in any training step.

    Arguments:
        model: Linear, BatchNorm1d without activation, and Sigmoid layers, the first a Linear.
        x: (N, inputs).
        labels: (N,), int64.

    Returns:
        The loss, a scalar, and the gradients in the order of `model.parameters()`.
    """
    saved: list[Any] = []
    for layer in model:
        x, kept = _forward(layer, x)
        saved.append(kept)
    log_p = F.log_softmax(x, 1)
    dx = log_p.exp()
    dx.scatter_add_(1, labels[:, None], dx.new_full((len(x), 1), -1.0)).div_(len(x))
    gradients: list[Tensor] = []
    for number in range(len(model) - 1, -1, -1):
        dx, own = _backward(model[number], dx, saved[number], first=number == 0)
        gradients[:0] = own
    return F.nll_loss(log_p, labels), gradients


def _forward(layer: nn.Module, x: Tensor) -> tuple[Tensor, Any]:
    """The layer's output, and what its backward needs."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, layer.weight, layer.bias), x
    if isinstance(layer, BatchNorm1d):
        mean, var = x.new_zeros(x.shape[1]), x.new_zeros(x.shape[1])
        y, *of_batch = torch.native_batch_norm(x, layer.weight, layer.bias, mean, var, True, 1.0, layer.eps)
        layer.track(mean, var)
        return y, (x, *of_batch)
    if isinstance(layer, nn.Sigmoid):
        y = x.sigmoid_()  # in place: nothing needs a sigmoid's input
        return y, y
    raise TypeError(f"no gradient written for {type(layer).__name__}")


def _backward(layer: nn.Module, dy: Tensor, saved: Any, first: bool) -> tuple[Tensor, list[Tensor]]:
    """The gradients by the layer's input (not for the `first` layer, which nobody asks) and by its parameters."""
    if isinstance(layer, nn.Linear):
        own = [dy.t() @ saved] if layer.bias is None else [dy.t() @ saved, dy.sum(0)]
        return dy if first else dy @ layer.weight, own
    if isinstance(layer, BatchNorm1d):
        x, mean, rstd = saved
        dx, dgamma, dbeta = torch.ops.aten.native_batch_norm_backward(
            dy, x, layer.weight, None, None, mean, rstd, True, layer.eps, [True, True, True]
        )
        return dx, [dgamma, dbeta]
    return torch.ops.aten.sigmoid_backward(dy, saved), []
