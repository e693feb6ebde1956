"""Running statistics on a device without our kernels: one operation moves mean, variance and count."""

from __future__ import annotations

import functools
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ..torch_private import batch_norm_impl_index
from . import fallback
from .activation import Transform
from .bindings import Running


def supports(x: Tensor, running: Running) -> bool:
    """Return True if `normalize_and_track` can take these. `x` must be an ordinary tensor on a CUDA device."""
    mean, var, momentum, count = running
    if x.dim() < 2 or x.numel() == 0 or not isinstance(momentum, float) or not _has_triton():
        return False
    if mean.dtype not in (torch.float32, torch.float64) or mean.requires_grad or var.requires_grad:
        return False
    if count is not None and (count.dtype != torch.int64 or count.device != x.device):
        return False
    shape = (x.size(1),)
    for t in (mean, var):  # not all(): every step of every layer runs this
        if not (t.shape == shape and t.dtype == mean.dtype and t.is_contiguous() and t.device == x.device):
            return False
    return True


def normalize_and_track(x: Tensor, how: Transform, running: Running) -> Tensor:
    """Return BN(x), before the residual and the activation, and move `running` by one Triton kernel on a CUDA device.

    torch normalizes and keeps the mean and 1 / std for its backward. The kernel reads the variance from the latter, so
    the running variance is off by at most 2 roundings of var + eps. The host does not wait.
    """
    cudnn = torch.backends.cudnn.enabled
    y, mean, rstd, _, _ = batch_norm_impl_index(x, how.weight, how.bias, None, None, True, 0.0, how.eps, cudnn)
    with torch.cuda.device_of(x):  # Triton launches on the current device
        launch(running, mean, rstd, how.eps, x.numel() // x.size(1))
    moved = (running.mean, running.var)
    count = running.batches_seen
    torch.autograd.graph.increment_version(moved if count is None else (*moved, count))
    return y


_compiled: dict[tuple[object, ...], Any] = {}  # by `launch`'s key


def launch(running: Running, mean: Tensor, rstd: Tensor, eps: float, values: int) -> None:
    """Launch the Triton kernel, a single instance. All tensors must be contiguous.

    Arguments:
        running: moved in place, if the batch is finite.
        mean: of the batch, (C,).
        rstd: 1 / sqrt(biased variance of the batch + eps), (C,).
        eps: as above.
        values: number of values per channel.
    """
    running_mean, running_var, momentum, count = running
    channels = mean.numel()
    block = max(16, 1 << (channels - 1).bit_length())
    unbiased = values / max(values - 1, 1)
    counted = count is not None
    counter = count if counted else running_mean
    arguments = (
        running_mean,
        running_var,
        counter,
        mean,
        rstd,
        momentum,
        float(eps),
        unbiased,
        channels,
        counted,
        block,
    )
    key = (running_mean.dtype, mean.dtype, mean.device.index, counted, block)
    compiled = _compiled.get(key)
    if compiled is not None:
        compiled[(1, 1, 1)](*arguments)  # skips Triton's specialization of arguments, a third of the launch's host time
    else:
        _launch_first(key, arguments)


def _launch_first(key: tuple[object, ...], arguments: tuple[object, ...]) -> None:
    """Launch by Triton, which compiles the kernel, and keep what it compiled for `launch`."""
    from triton.compiler import CompiledKernel

    launched = _kernel()[(1, 1, 1)](*arguments)
    if isinstance(launched, CompiledKernel):  # Triton's interpreter returns None
        _compiled[key] = launched


@functools.cache
def _has_triton() -> bool:
    return find_spec("triton") is not None  # torch for Windows comes without


@functools.cache
def _kernel() -> Any:
    """Return the compiled kernel. Triton is imported here, because it is slow to import and only GPUs need it."""
    import triton
    import triton.language as tl

    # One compiled kernel must serve every value and address, because `launch` does not look for a special one.
    @triton.jit(
        do_not_specialize=[
            *("running_mean", "running_var", "count", "mean", "rstd"),
            *("momentum", "eps", "unbiased", "channels"),
        ]
    )
    def kernel(
        running_mean,
        running_var,
        count,
        mean,
        rstd,
        momentum,
        eps,
        unbiased,
        channels,
        counted: tl.constexpr,
        block: tl.constexpr,
    ):
        at = tl.arange(0, block)
        inside = at < channels
        to_m = tl.load(mean + at, inside, 0.0)
        r = tl.load(rstd + at, inside, 1.0).to(tl.float64)
        to_v = 1 / (r * r) - eps
        # 0 times infinity or NaN is NaN. `update_on_device` says why this is no difference.
        finite = tl.sum(tl.where((to_m * 0 == 0) & (to_v * 0 == 0), 0, 1), 0) == 0
        to_v = tl.where(to_v > 0, to_v, 0) * unbiased
        m = tl.load(running_mean + at, inside, 0.0)
        v = tl.load(running_var + at, inside, 0.0)
        to_m, to_v = to_m.to(m.dtype), to_v.to(v.dtype)
        # The formula of torch's lerp, which is exact at both ends.
        m = tl.where(momentum < 0.5, m + momentum * (to_m - m), to_m - (to_m - m) * (1 - momentum))
        v = tl.where(momentum < 0.5, v + momentum * (to_v - v), to_v - (to_v - v) * (1 - momentum))
        tl.store(running_mean + at, m, inside & finite)
        tl.store(running_var + at, v, inside & finite)
        if counted:
            tl.store(count, tl.load(count) + 1, finite)

    return kernel


@torch.library.custom_op(
    "batchnorm::move_running", mutates_args=("running_mean", "running_var", "batches_seen"), device_types=None
)
def move_running(
    running_mean: Tensor, running_var: Tensor, batches_seen: Tensor | None, mean: Tensor, var: Tensor, momentum: float
) -> None:
    """Move the running statistics in place if the batch is finite, and count it. The host does not wait.

    Arguments:
        running_mean: (C,).
        running_var: (C,).
        batches_seen: a scalar, or None.
        mean: of the batch, (C,).
        var: unbiased variance of the batch, (C,).
        momentum: weight of the new batch.
    """
    finite = fallback.update_on_device(running_mean, running_var, mean, var, momentum)
    if batches_seen is not None:
        batches_seen.add_(finite)


@move_running.register_fake
def _(*_: object) -> None:
    pass
