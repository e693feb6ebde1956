"""`masked`: keep padding out of the statistics of a whole network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BatchNormError
from ..kernels.batches import eagerly
from ..kernels.packing import as_mask, check_mask, from_lengths
from ..torch_private import pytree
from .attached import layers_of, replaced


@contextmanager
def masked(model: nn.Module, *, mask: Tensor | None = None, lengths: Tensor | None = None) -> Iterator[None]:
    """Within the block, every BN layer of `model` counts the values of the mask only.

    Statistics are those of the values that count, as if they had been packed. The output is 0 elsewhere, and no
    gradient flows from or to there. So a NaN in the padding does not matter either. In torch the padding enters the
    statistics in silence (pytorch issue 70529).

    A layer whose input is shorter or longer than the network's, behind a stride, takes the mask at the nearest places:
    of a sequence the first ceil(length * L_layer / L_input) values. A layer without places, (N, C), counts each
    example of which any value counts. With a mask of (N,), each layer counts whole examples.

    Arguments:
        model: any network. Its layers may be torch's.
        mask: bool, (N,), (N, L) or (N, H, W): True where a value of the network's input counts. An axis may be 1.
        lengths: integers, (N,), in place of `mask`: the number of values of each sequence that count, along the last
            axis of the first tensor of two axes or more that `model` is called with. If that axis holds features,
            (N, L, C), give `mask`. Of (N, C, H, W), too, they count along the last axis.

    Raises:
        BatchNormError: both or neither are given, there is no BN layer, or the mask does not fit the input of a layer.
            The message names it.

    Example:
        >>> import torch
        >>> import batchnorm as bn
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(1, momentum=1.0))
        >>> x = torch.tensor([[[1.0, 3.0, 99.0]]])
        >>> with bn.masked(model, lengths=torch.tensor([2])):
        ...     model(x).detach()
        tensor([[[-1.0000,  1.0000,  0.0000]]])
        >>> model[0].running_mean
        tensor([2.])
    """
    if (mask is None) == (lengths is None):
        raise BatchNormError(f"masked wants mask or lengths; got {'neither' if mask is None else 'both'}")
    if mask is not None:
        check_mask(mask)
    layers = layers_of(model, "mask")
    source = _Source(mask, lengths)
    hook = model.register_forward_pre_hook(source.see, with_kwargs=True)
    try:
        with replaced(layers, "mask", {name: partial(_fitted, name, source) for name in layers}):
            yield
    finally:
        hook.remove()


class _Source:
    """The mask at the network's input. Lengths become one when the input is known."""

    def __init__(self, mask: Tensor | None, lengths: Tensor | None) -> None:
        self._mask, self._lengths = mask, lengths

    @eagerly
    def see(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Read the length of the input of the network: the last axis of its first tensor of two axes or more."""
        if self._lengths is None:
            return
        leaves = pytree.tree_leaves((args, kwargs))
        x = next((leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim() > 1), None)
        self._mask = None if x is None else from_lengths(self._lengths, len(x), x.shape[-1], x.device)

    def mask(self, x: Tensor) -> Tensor:
        """Return the mask at the network's input, or at `x` if the network has not seen an input, for N examples."""
        if self._mask is None:  # the layer was called by itself
            return as_mask(x, None, self._lengths)
        mask = self._mask.to(x.device)
        if self._lengths is not None and x.dim() > 3:  # the last axis of the places is that of the lengths
            mask = mask.view(len(mask), *[1] * (x.dim() - 3), -1)
        return mask.expand(len(x), *mask.shape[1:]) if len(mask) == 1 else mask


def _fitted(name: str, source: _Source, x: Tensor) -> Tensor:
    """Return the mask for the input of a layer, (N, ...)."""
    try:
        mask = source.mask(x)
    except BatchNormError as error:
        raise BatchNormError(f"layer {name!r}: {error}") from error
    places = x.shape[2:]
    if len(mask) == len(x) and mask.dim() == 1:
        return as_mask(x, mask, None)
    if len(mask) == len(x) and not places:
        return mask.flatten(1).any(1)
    if len(mask) != len(x) or mask.dim() - 1 != len(places):
        raise BatchNormError(
            f"the mask of shape {tuple(mask.shape)} does not fit the input of {name!r}, {tuple(x.shape)}. Its first "
            "axis must be N and the others the places, as many as the layer has. Or give the layer a mask of its own."
        )
    for axis, size in enumerate(places, start=1):
        if size != mask.shape[axis]:
            mask = mask.index_select(axis, torch.arange(size, device=x.device) * mask.shape[axis] // size)
    return mask
