"""Calls into the compiled kernels: pass tensors by address, and allocate the outputs."""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
from torch import Tensor

from .activation import Activation, Transform
from .library import Library, load

_kernels = cast(Library, load())  # or None; `installed` tells

# The code of each activation: its place in the enum of csrc/batch_norm.hpp.
_ACTIVATIONS: dict[Activation | None, int] = {
    None: 0,
    "relu": 1,
    "leaky_relu": 2,
    "relu6": 3,
    "hardswish": 4,
    "sigmoid": 5,
    "silu": 6,
    "gelu": 7,
    "gelu_tanh": 8,
}
DTYPES = (torch.float32, torch.bfloat16)
CPU = torch.device("cpu")  # explicit for every new tensor, because the default device may be another


class Running(NamedTuple):
    """Running statistics and how they move.

    Arguments:
        mean, var: (C,), moved in place.
        momentum: weight of the new batch.
        batches_seen: increased by 1 in place with every finite batch, or None.
    """

    mean: Tensor
    var: Tensor
    momentum: float | Tensor
    batches_seen: Tensor | None = None


class Normalized(NamedTuple):
    """The results of a training forward.

    Arguments:
        z: the output, shaped like the input.
        batch: mean and unbiased variance of the batch, (2, C). None if running statistics were given.
        finite: True if the statistics of the batch, or of the last virtual one, are finite. Only then do given running
            statistics move.
        saved: mean and rstd of each virtual batch, (G, 2, C) in float64, for the backward.
    """

    z: Tensor
    batch: Tensor | None
    finite: bool
    saved: Tensor


def kernel_target() -> str | None:
    """Return the instruction set that the compiled kernels use, or None without compiled kernels.

    On x86-64 it is "x86-64-v2", "x86-64-v3", "x86-64-v4" or "x86-64-v4+bf16". Elsewhere it is the name of the
    architecture. Without compiled kernels torch's own operations run, slower.

    Example:
        >>> import batchnorm as bn
        >>> target = bn.kernel_target()
        >>> target is None or isinstance(target, str)
        True
    """
    return None if _kernels is None else _kernels.target()


def installed() -> bool:
    """Return True if the compiled kernels are installed. `torch.compile` can trace this, but not `kernel_target`."""
    return _kernels is not None


def is_channels_last(x: Tensor) -> bool | None:
    """Return True for a dense (N, S, C) layout, False for a dense (N, C, S) layout, None for any other layout."""
    if x.is_contiguous():
        _, channels, *places = x.shape
        return channels == 1 or math.prod(places) == 1
    last = x.is_contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.movedim(1, -1).is_contiguous()
    return True if last else None


def supports(x: Tensor, *per_channel: Tensor | None) -> bool:
    """Return True if the kernels support device, dtype and axes of `x`, and each of `per_channel` fits its channels."""
    if not x.is_cpu or x.dtype not in DTYPES or x.layout != torch.strided or x.dim() < 2:
        return False
    return are_per_channel(x.size(1), *per_channel)


def are_per_channel(channels: int, *tensors: Tensor | None) -> bool:
    """Return True if each tensor is None or a contiguous float32 vector of `channels` values on the CPU."""
    shape = (channels,)
    for t in tensors:  # not all(): every step of every layer runs this
        if t is not None and not (t.dtype == torch.float32 and t.is_cpu and t.shape == shape and t.is_contiguous()):
            return False
    return True


def forward(x: Tensor, how: Transform, running: Running | None = None, size: int = 0) -> Normalized:
    """Normalize by the batch, and move `running` if it is given. The residual must have the dtype of `x`.

    Arguments:
        x: (N, C, ...).
        how: what to apply.
        running: moved in place. None with virtual batches.
        size: of the virtual batches. 0 means that all examples are one. Then `batch` and `saved` are (2, C).
    """
    z = torch.empty_like(x)
    shape = (2, x.size(1)) if size == 0 else (max(1, x.size(0) // size), 2, x.size(1))
    saved = torch.empty(shape, dtype=torch.float64, device=CPU)
    last = is_channels_last(x)
    residual = None if how.residual is None else _laid_out(how.residual, x, last)
    problem = _problem(x, last, how, residual)
    eps = how.eps
    if running is None:
        batch = torch.empty(shape, dtype=torch.float32, device=CPU)
        outputs = (z.data_ptr(), batch.data_ptr(), saved.data_ptr())
        finite = _kernels.forward(*problem, size, eps, x.data_ptr(), *outputs, 0.0, 0, 0, 0)  # no running statistics
        return Normalized(z, batch, bool(finite), saved)
    mean, var, momentum, count = running
    outputs = (z.data_ptr(), 0, saved.data_ptr())  # no batch statistics: the kernel blends them into the running ones
    moved = (float(momentum), mean.data_ptr(), var.data_ptr(), _address(count))
    finite = _kernels.forward(*problem, 0, eps, x.data_ptr(), *outputs, *moved)
    # Tell autograd about the write, as torch's own operations do.
    torch.autograd.graph.increment_version((mean, var) if count is None else (mean, var, count))
    return Normalized(z, None, bool(finite), saved)


def statistics(x: Tensor) -> Tensor:
    """Return mean and 1 / std (biased) of each channel, (2, C) in float64. x must have values."""
    saved = torch.empty((2, x.size(1)), dtype=torch.float64, device=CPU)
    batch = torch.empty((2, x.size(1)), dtype=torch.float32, device=CPU)
    problem = _problem(x, is_channels_last(x), Transform(None, None, 0.0), None)
    _kernels.forward(*problem, 0, 0.0, x.data_ptr(), 0, batch.data_ptr(), saved.data_ptr(), 0.0, 0, 0, 0)
    return saved


def normalize(x: Tensor, saved: Tensor, how: Transform) -> Tensor:
    """Normalize by given mean and rstd, (2, C) in float64. The residual must have the dtype of `x`."""
    return _normalized(x, how, saved.data_ptr(), 0, 0)


class Whole(NamedTuple):
    """The sums over a batch of which one process has a part.

    Arguments:
        sums: dbias and dweight, (2, C) in float64.
        values: of a channel.
    """

    sums: Tensor
    values: int


class Gradients(NamedTuple):
    """The gradients of a training step. None stands for one that was not wanted."""

    x: Tensor | None
    weight: Tensor
    bias: Tensor
    residual: Tensor | None


def backward(
    dz: Tensor,
    x: Tensor,
    how: Transform,
    saved: Tensor,
    want_dx: bool = True,
    want_dresidual: bool = False,
    size: int = 0,
    whole: Whole | None = None,
) -> Gradients:
    """Return the gradients.

    Arguments:
        dz: the gradient of the output. It is copied if its layout is not that of `x`.
        x: the input of the forward.
        how: as in the forward.
        saved: mean and rstd from the forward.
        want_dx: compute the gradient of x.
        want_dresidual: compute the gradient of the residual. Without an activation it is `dz` itself.
        size: of the virtual batches, as in the forward.
        whole: sums over a batch of which x is a part. Then weight and bias get these as their gradients.
    """
    last, channels = is_channels_last(x), x.size(1)
    dz = _laid_out(dz, x, last)
    follows = how.activation is not None  # else the backward does not need the residual
    residual = _laid_out(how.residual, x, last) if follows and how.residual is not None else None
    dresidual = torch.empty_like(x) if want_dresidual and follows else None
    dx = torch.empty_like(x) if want_dx or dresidual is not None else None
    dweight, dbias = (torch.empty(channels, dtype=torch.float32, device=CPU) for _ in range(2))
    problem = _problem(x, last, how, residual)
    # Address 0: skip this gradient.
    outputs = (_address(dx), _address(dresidual), dweight.data_ptr(), dbias.data_ptr())
    total, count = (0, 0) if whole is None else (whole.sums.data_ptr(), whole.values)
    _kernels.backward(*problem, size, x.data_ptr(), dz.data_ptr(), saved.data_ptr(), *outputs, total, count)
    return Gradients(dx if want_dx else None, dweight, dbias, dresidual if follows else dz if want_dresidual else None)


def inference(x: Tensor, mean: Tensor, var: Tensor, how: Transform) -> Tensor:
    """Normalize by given statistics. The residual must have the dtype of `x`."""
    return _normalized(x, how, 0, mean.data_ptr(), var.data_ptr())


def _normalized(x: Tensor, how: Transform, saved: int, mean: int, var: int) -> Tensor:
    """Normalize by the statistics at these addresses: `saved`, or else `mean` and `var`."""
    z, last = torch.empty_like(x), is_channels_last(x)
    residual = None if how.residual is None else _laid_out(how.residual, x, last)
    problem = _problem(x, last, how, residual)
    _kernels.inference(*problem, how.eps, x.data_ptr(), saved, mean, var, z.data_ptr())
    return z


def update_running(running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, momentum: float) -> bool:
    """Move float32 running statistics in place if the batch statistics are finite. Return True if they are."""
    moved = (running_mean.data_ptr(), running_var.data_ptr())
    finite = _kernels.update_running(len(mean), momentum, *moved, mean.data_ptr(), var.data_ptr())
    # Tell autograd about the write, as torch's own operations do.
    torch.autograd.graph.increment_version((running_mean, running_var))
    return bool(finite)


def _laid_out(t: Tensor, x: Tensor, last: bool | None) -> Tensor:
    """Return `t`, or a copy in the layout of `x` if its own is another one."""
    same = t.stride() == x.stride() or is_channels_last(t) == last
    return t if same and not t.is_neg() else torch.empty_like(x).copy_(t)


def _problem(x: Tensor, channels_last: bool | None, how: Transform, residual: Tensor | None) -> tuple[float, ...]:
    """Return the fields of `batchnorm_problem` in csrc/interface.h."""
    n, c, *places = x.shape
    return (
        n,
        c,
        math.prod(places),
        bool(channels_last),
        x.dtype == torch.bfloat16,
        _ACTIVATIONS[how.activation],
        torch.get_num_threads(),
        how.slope,
        _address(how.weight),
        _address(how.bias),
        _address(residual),
    )


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()
