"""Choose the values that share a mean and a variance: those of a mask, of virtual batches, or of all processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from ..errors import BatchNormError
from ..moments import Moments
from ..torch_private import current_graph_task_id, disable_dynamo
from . import dispatch, fallback, masked, packing, synchronized
from .activation import Transform
from .bindings import Running
from .checks import check_eps, check_residual, check_running
from .meeting import Meeting

# `torch.compiler.disable`, without importing the compiler before a function is called.
eagerly = disable_dynamo


@dataclass
class Special:
    """What a layer does other than normalize by all values of its batch.

    A copy or a pickle has no mask and collects nothing, because it has no part in the block that set these.

    Arguments:
        mask: called with the layer's input, returns its mask (see `packing.as_mask`), or None.
        size: examples in a virtual batch, or 0 for the whole batch.
        meeting: the processes to share statistics with, or None.
        collected: receives the moments of each training batch. Then the running statistics stay as they are.
    """

    mask: Callable[[Tensor], Tensor] | None = None
    size: int = 0
    meeting: Meeting | None = None
    collected: list[Moments] | None = None

    def __bool__(self) -> bool:
        return self.mask is not None or self.size > 0 or self.meeting is not None or self.collected is not None

    def __reduce__(self) -> tuple[type[Special], tuple[None, int, Meeting | None]]:
        return Special, (None, self.size, self.meeting)

    def is_traceable(self) -> bool:
        """Return True if torch.compile can trace it: all shapes are known, and nothing leaves the graph."""
        return self.mask is None and self.meeting is None and self.collected is None


def batch_norm(
    x: Tensor, how: Transform, running: Running | None, training: bool, special: Special
) -> tuple[Tensor, bool | Tensor | None]:
    """Normalize by the batch, or by `running` unless `training`, in the way that `special` says.

    Returns:
        z, 0 where the mask does not count; and True if the statistics of the batch are finite, as `update_running`.
    """
    check_residual(x, how.residual)
    mask = None if special.mask is None else special.mask(x)
    if not training and running is not None:
        return _by_running(x, how, running, mask), True
    if running is not None:
        check_running(x, running.mean, running.var)
    z, moments = _normalize(x, how, mask, special)
    if running is None or in_backward():
        return z, True
    if special.collected is not None:
        special.collected.append(moments)
        return z, True
    return z, move(running, moments)


# For masks and exchanges between processes, whose shapes and effects torch.compile cannot trace. It breaks the graph.
batch_norm_eagerly = eagerly(batch_norm)


def in_backward() -> bool:
    """Return True inside of a backward pass, as when a checkpoint computes its forward again."""
    return not torch.compiler.is_compiling() and current_graph_task_id() != -1


def move(running: Running, moments: Moments) -> bool | Tensor | None:
    """Move the running statistics by the moments of a batch. One without values changes nothing."""
    if moments.count < 2:
        return True
    mean, var = moments.mean, moments.var(unbiased=True)
    return dispatch.update_running(running, mean.to(running.mean.dtype), var.to(running.var.dtype))


def _by_running(x: Tensor, how: Transform, running: Running, mask: Tensor | None) -> Tensor:
    if mask is None:
        return dispatch.normalize(x, running.mean, running.var, how)
    if how.residual is not None:
        how = how._replace(residual=masked.zeroed(how.residual, mask))
    z = dispatch.normalize(masked.zeroed(x, mask), running.mean, running.var, how)
    return masked.zeroed(z, mask)


def _normalize(x: Tensor, how: Transform, mask: Tensor | None, special: Special) -> tuple[Tensor, Moments]:
    """Normalize by the batch. Return z and the moments that the running statistics take."""
    if special.size and mask is not None:
        z, moments = _by_masked_virtual_batches(x, how, mask, special.size)
    elif mask is not None:
        return _normalize_masked(x, how, mask, special.meeting)
    elif special.size:
        z, moments = dispatch.normalize_with_moments(x, how, special.size)
    else:
        return _normalize_rows(x, how, special.meeting)
    # Virtual batches are of one process. Their moments are those of all processes.
    return z, moments if special.meeting is None else special.meeting.merge(moments)


def _normalize_masked(x: Tensor, how: Transform, mask: Tensor, meeting: Meeting | None) -> tuple[Tensor, Moments]:
    how = dispatch.with_wide_affine(x, how)
    if meeting is None and dispatch.kernel_supports(x, how):
        count = int(mask.sum())
        if count == mask.numel():
            return dispatch.normalize_with_moments(x, how)
        if count > 1:
            check_eps(how.eps)
            return masked.normalize(x, how, mask, count)
    packed = packing.Packed(x, mask)
    z, moments = _normalize_rows(packed.rows(x), packed.transform(how), meeting)
    return packed.unpack(z), moments


def _normalize_rows(x: Tensor, how: Transform, meeting: Meeting | None) -> tuple[Tensor, Moments]:
    if meeting is not None:
        return synchronized.normalize(x, how, meeting)
    return dispatch.normalize_with_moments(x, how)


def _by_masked_virtual_batches(x: Tensor, how: Transform, mask: Tensor, size: int) -> tuple[Tensor, Moments]:
    lengths = fallback.virtual_batches(len(x), size)
    residuals = [None] * len(lengths) if how.residual is None else how.residual.split(lengths)
    parts = zip(x.split(lengths), residuals, mask.split(lengths), strict=True)
    found = [_normalize(part, how._replace(residual=r), m, Special()) for part, r, m in parts]
    return torch.cat([z for z, _ in found]), reduce(Moments.merge, (moments for _, moments in found))


def check_size(size: int | None) -> int:
    """Return the size of the virtual batches, 0 for none. Raise BatchNormError if it is no number of examples."""
    if size is None:
        return 0
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise BatchNormError(f"virtual_batch_size must be None or a number of examples, 1 or more; got {size!r}")
    return size
