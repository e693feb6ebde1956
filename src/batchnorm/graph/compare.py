"""Run two networks on one input, and measure how far their outputs are apart."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BatchNormError, first_line
from ..torch_private import pytree

SAME = 1e-5  # relative: float32 sums in another order differ by less
Call = tuple[tuple[Any, ...], dict[str, Any]]  # the arguments of one call


def copied(model: nn.Module) -> nn.Module:
    """Return a copy of the model that shares no storage with it.

    Raises:
        BatchNormError: something in the network cannot be copied.
    """
    # A weight that a hook computes (prune, the older weight_norm) is no leaf of autograd. torch copies leaves only.
    computed = [v for m in model.modules() for v in vars(m).values() if isinstance(v, Tensor) and not v.is_leaf]
    try:
        return copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in computed})
    except Exception as error:
        raise BatchNormError(
            f"{type(model).__name__} cannot be copied, and the model given must stay as it is: {first_line(error)}"
        ) from error


@torch.no_grad()
def run(model: nn.Module, call: Call) -> Any:
    """Return the output for `call`. The network gets copies of the tensors, since it may write into its inputs."""
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, call)
    return model(*args, **kwargs)


def doubled(call: Call) -> Call:
    """Return the arguments with every example twice in the batch."""
    return pytree.tree_map_only(Tensor, lambda x: torch.cat([x, x]) if x.dim() else x, call)


def largest_error(got: Any, wanted: Any) -> float:
    """Return the largest difference between two outputs, relative to the largest value of the tensor.

    Arguments:
        got: a tensor, or a structure of tensors and other values.
        wanted: the output that is right. Another structure or shape, or another place of NaN or infinity, is infinitely
            far from it.
    """
    got_leaves, wanted_leaves = pytree.tree_leaves(got), pytree.tree_leaves(wanted)
    if len(got_leaves) != len(wanted_leaves):
        return float("inf")
    return max((_difference(*pair) for pair in zip(got_leaves, wanted_leaves, strict=True)), default=0.0)


def _difference(got: Any, wanted: Any) -> float:
    if not isinstance(wanted, Tensor):
        return 0.0 if got == wanted else float("inf")
    if not isinstance(got, Tensor) or got.shape != wanted.shape:
        return float("inf")
    if not wanted.numel():
        return 0.0
    got, wanted = got.detach().double(), wanted.detach().double()
    # NaN and infinity must be where they are wanted. The rest is compared without them.
    finite = wanted.isfinite()
    if not torch.equal(finite, got.isfinite()):
        return float("inf")
    scale = torch.where(finite, wanted, 0).abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return float(torch.where(finite, got - wanted, 0).abs().max() / scale)
