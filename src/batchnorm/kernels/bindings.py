"""Tensors to the compiled kernels and back: layouts, addresses, outputs. No autograd, no choice of who computes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from . import _kernels
else:
    try:
        from . import _kernels
    except ImportError:  # built without a compiler: torch computes everything, slower
        _kernels = None

ACTIVATIONS: dict[str | None, int] = {None: 0, "relu": 1, "leaky_relu": 2}
DTYPES = (torch.float32, torch.bfloat16)
CPU = torch.device("cpu")  # said wherever a tensor is made: the default device may be another
# Running mean and variance, the momentum that moves them, and how many batches they have seen.
Running = tuple[Tensor, Tensor, float, Tensor | None]


def kernels_available() -> bool:
    """Whether the compiled CPU kernels are installed; without them torch's own operations do their work, slower."""
    return _kernels is not None


def is_channels_last(x: Tensor) -> bool | None:
    """Whether the channels of a dense `x` vary fastest in memory; None if `x` is neither (N, C, S) nor (N, S, C)."""
    if x.is_contiguous():
        _, channels, *places = x.shape
        return channels == 1 or math.prod(places) == 1
    last = x.is_contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.movedim(1, -1).is_contiguous()
    return True if last else None


def fits(x: Tensor, *channelwise: Tensor | None) -> bool:
    """Whether device, dtype and axes are those of the kernels, and each of `channelwise` is of the channels of `x`."""
    if not x.is_cpu or x.dtype not in DTYPES or x.layout != torch.strided or x.dim() < 2:
        return False
    return are_statistics(x.size(1), *channelwise)


def are_statistics(channels: int, *tensors: Tensor | None) -> bool:
    """Whether each is None or a float32 value a channel, side by side."""
    shape = (channels,)
    for t in tensors:  # not all(): this runs at every step of every layer
        if t is not None and not (t.dtype == torch.float32 and t.is_cpu and t.shape == shape and t.is_contiguous()):
            return False
    return True


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """z; the batch's mean and unbiased variance, (2, C); for the backward mean and rstd, (2, C) double."""
    z = torch.empty_like(x)
    batch = torch.empty((2, x.size(1)), dtype=torch.float32, device=CPU)
    saved = torch.empty((2, x.size(1)), dtype=torch.float64, device=CPU)
    problem = _problem(x, is_channels_last(x), weight, bias, activation, slope)
    outputs = (z.data_ptr(), batch.data_ptr(), saved.data_ptr())
    _kernels.forward(problem, x.data_ptr(), eps, *outputs, 0, 0, 0.0, 0)  # no running statistics
    return z, batch, saved


def forward_and_track(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    slope: float,
    running: Running,
) -> tuple[Tensor, Tensor, bool]:
    """z; for the backward mean and rstd, (2, C) double; whether the batch was finite: it moved `running` then."""
    z = torch.empty_like(x)
    saved = torch.empty((2, x.size(1)), dtype=torch.float64, device=CPU)
    mean, var, momentum, count = running
    moved = (mean.data_ptr(), var.data_ptr(), momentum, _address(count))
    problem = _problem(x, is_channels_last(x), weight, bias, activation, slope)
    outputs = (z.data_ptr(), 0, saved.data_ptr())  # no batch statistics: the running ones take them
    finite = _kernels.forward(problem, x.data_ptr(), eps, *outputs, *moved)
    # Autograd must notice, as it does when torch writes.
    torch.autograd.graph.increment_version((mean, var) if count is None else (mean, var, count))
    return z, saved, finite


def backward(
    dz: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    saved: Tensor,
    activation: str | None,
    slope: float,
    want_dx: bool = True,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """The gradients of x (if wanted), weight and bias, from z's, which is copied if its layout is not that of x."""
    last, channels = is_channels_last(x), x.size(1)
    if (dz.stride() != x.stride() and is_channels_last(dz) != last) or dz.is_neg():
        dz = torch.empty_like(x).copy_(dz)
    dx = torch.empty_like(x) if want_dx else None
    dweight, dbias = (torch.empty(channels, dtype=torch.float32, device=CPU) for _ in range(2))
    problem = _problem(x, last, weight, bias, activation, slope)
    outputs = (_address(dx), dweight.data_ptr(), dbias.data_ptr())  # without an address: not computed
    _kernels.backward(problem, x.data_ptr(), dz.data_ptr(), saved.data_ptr(), *outputs)
    return dx, dweight, dbias


def inference(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    slope: float,
) -> Tensor:
    """z, normalised by given statistics."""
    z = torch.empty_like(x)
    problem = _problem(x, is_channels_last(x), weight, bias, activation, slope)
    _kernels.inference(problem, x.data_ptr(), mean.data_ptr(), var.data_ptr(), eps, z.data_ptr())
    return z


def update_running(running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, momentum: float) -> bool:
    """Move float32 running statistics towards finite batch statistics; whether they were finite."""
    finite = _kernels.update_running(
        running_mean.data_ptr(), running_var.data_ptr(), mean.data_ptr(), var.data_ptr(), len(mean), momentum
    )
    # Autograd must notice, as it does when torch writes.
    torch.autograd.graph.increment_version((running_mean, running_var))
    return finite


def _problem(
    x: Tensor,
    channels_last: bool | None,
    weight: Tensor | None,
    bias: Tensor | None,
    activation: str | None,
    slope: float,
) -> _kernels.Problem:
    n, c, *places = x.shape
    return _kernels.Problem(
        n,
        c,
        math.prod(places),
        bool(channels_last),
        x.dtype == torch.bfloat16,
        ACTIVATIONS[activation],
        slope,
        torch.get_num_threads(),
        _address(weight),
        _address(bias),
    )


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()
