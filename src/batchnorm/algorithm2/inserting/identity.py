"""Start new batch normalizations as the identity on measured batches (Sec. 3.1)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...errors import BatchNormError
from ...graph.batches import check_batches, in_eval, run_batch
from ...layers import FusedBatchNorm
from ...moments import Moments


class Start(NamedTuple):
    """A new BN layer that starts as the identity.

    Arguments:
        layer: the new layer.
        place: the name of the affine layer before it.
        dropped: the bias that this affine layer will lose, or None.
    """

    layer: FusedBatchNorm
    place: str
    dropped: Tensor | None


def start_at_identity(module: nn.Module, starts: list[Start], batches: Iterable[Any]) -> None:
    """Set every new BN so that it gives y = x in eval mode.

    Measure the moments of its input over `batches`, in the network as it was: biases are still there, and while this
    runs every new BN passes its input on.
    """
    check_batches(batches)
    measured: dict[nn.Module, Moments] = {}

    def measure(layer: nn.Module, args: tuple[Tensor], _output: Tensor) -> Tensor:
        moments = Moments.from_batch(args[0])
        measured[layer] = measured[layer].merge(moments) if layer in measured else moments
        return args[0]

    hooks = [start.layer.register_forward_hook(measure) for start in starts]
    try:
        with in_eval(module), torch.no_grad():
            for batch in batches:
                run_batch(module, batch)
    finally:
        for hook in hooks:
            hook.remove()
    for start in starts:
        _set(start, measured.get(start.layer))


@torch.no_grad()
def _set(start: Start, moments: Moments | None) -> None:
    if moments is None or moments.count < 2:
        raise BatchNormError(
            f"batches give {start.place!r} fewer than two values per channel; give one batch or more, each of "
            "two examples or more"
        )
    if not moments.m2.isfinite().all():
        raise BatchNormError(f"batches give {start.place!r} values that are not finite; look for inf or NaN")
    layer = start.layer
    mean, var = layer.get_buffer("running_mean"), layer.get_buffer("running_var")
    # Without its bias the affine layer gives Wu. BN subtracts the mean of Wu, and beta adds the mean of Wu + b.
    mean.copy_(moments.mean if start.dropped is None else moments.mean - start.dropped.to(moments.mean))
    var.copy_(moments.var(unbiased=True))
    layer.weight.copy_((var.to(moments.mean) + layer.eps).sqrt())
    layer.bias.copy_(moments.mean)
