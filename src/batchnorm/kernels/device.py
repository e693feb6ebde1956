"""Running statistics on a device without our kernels: one operator moves mean, variance and count."""

from __future__ import annotations

import functools
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from . import fallback

BLOCK = 1024  # channels that one instance of the Triton kernel handles at a time


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
    tensors = [t for t in (running_mean, running_var, batches_seen, mean, var) if t is not None]
    if mean.is_cuda and _has_triton() and all(t.is_contiguous() for t in tensors):
        return launch(running_mean, running_var, batches_seen, mean, var, momentum)
    finite = fallback.update_on_device(running_mean, running_var, mean, var, momentum)
    if batches_seen is not None:
        batches_seen.add_(finite)
    return None


@move_running.register_fake
def _(*_: object) -> None:
    pass


def launch(
    running_mean: Tensor, running_var: Tensor, batches_seen: Tensor | None, mean: Tensor, var: Tensor, momentum: float
) -> None:
    """Launch the Triton kernel, one instance that walks over all channels. All tensors must be contiguous."""
    counted = batches_seen is not None
    count = batches_seen if counted else running_mean
    _kernel()[(1,)](running_mean, running_var, count, mean, var, momentum, mean.numel(), counted, BLOCK)


@functools.cache
def _has_triton() -> bool:
    return find_spec("triton") is not None  # torch for Windows comes without


@functools.cache
def _kernel() -> Any:
    """Return the compiled kernel. Triton is imported here, because it is slow to import and only GPUs need it."""
    import triton
    import triton.language as tl

    @triton.jit
    def kernel(
        running_mean, running_var, count, mean, var, momentum, channels, counted: tl.constexpr, block: tl.constexpr
    ):
        bad = tl.zeros((block,), tl.int32)
        for start in range(0, channels, block):
            at = start + tl.arange(0, block)
            m = tl.load(mean + at, at < channels, 0.0)
            v = tl.load(var + at, at < channels, 0.0)
            bad += tl.where((m - m) + (v - v) == 0, 0, 1)  # infinity minus itself is NaN
        if tl.sum(bad, 0) == 0:
            for start in range(0, channels, block):
                at = start + tl.arange(0, block)
                m = tl.load(running_mean + at, at < channels, 0.0)
                v = tl.load(running_var + at, at < channels, 0.0)
                to_m = tl.load(mean + at, at < channels, 0.0).to(m.dtype)
                to_v = tl.load(var + at, at < channels, 0.0).to(v.dtype)
                # The formula of torch's lerp, which is exact at both ends.
                if momentum < 0.5:
                    m += momentum * (to_m - m)
                    v += momentum * (to_v - v)
                else:
                    m = to_m - (to_m - m) * (1 - momentum)
                    v = to_v - (to_v - v) * (1 - momentum)
                tl.store(running_mean + at, m, at < channels)
                tl.store(running_var + at, v, at < channels)
            if counted:
                tl.store(count, tl.load(count) + 1)

    return kernel
