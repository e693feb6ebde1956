"""Merge estimates across the processes of `torch.distributed`."""

from __future__ import annotations

from contextlib import suppress
from functools import reduce

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import BatchNormError, PeerError, first_line
from ..graph.batches import device_of
from ..moments import Moments
from .estimator import Estimate


def rank() -> int:
    """Return the rank of this process; 0 without torch.distributed."""
    return dist.get_rank() if _world_size() else 0


def merge_across_processes(model: nn.Module, estimates: dict[str, Estimate]) -> dict[str, Estimate]:
    """Merge the estimates of all processes in the order of their ranks, so that all get the same bits.

    Arguments:
        model: the network, whose device the processes communicate from.
        estimates: one per layer. Without torch.distributed they are returned as they are.

    Raises:
        PeerError: another process has failed or is gone.
        BatchNormError: another process has other layers.
    """
    if not _world_size():
        return estimates
    packed = [_pack(estimate) for estimate in estimates.values()]
    sizes = [len(part) for part in packed]
    _check_peers(model, sum(sizes))
    ranks = [theirs.split(sizes) for theirs in _gather(model, torch.cat(packed))]
    return {
        name: reduce(Estimate.merge, (_unpack(parts[i], own) for parts in ranks))
        for i, (name, own) in enumerate(estimates.items())
    }


def report_failure(model: nn.Module) -> None:
    """Tell the other processes that this one has failed. They wait for its estimates."""
    if _world_size():
        with suppress(PeerError):  # the caller raises the error that came first
            _gather(model, torch.tensor([0, True]))


def _check_peers(model: nn.Module, size: int) -> None:
    """Raise if a process has failed, or has other than `size` numbers to merge."""
    for peer, (their_size, failed) in enumerate(_gather(model, torch.tensor([size, False]))):
        if failed:
            raise PeerError(f"recalibrate failed in the process of rank {peer}, see its error; nothing changed here")
        if their_size != size:
            raise BatchNormError(f"the process of rank {peer} recalibrates other layers; give all the same network")


def _gather(model: nn.Module, mine: Tensor) -> list[Tensor]:
    """Return the tensors of all processes, by rank. All have the shape of `mine`."""
    mine = mine.to("cpu" if dist.get_backend() == "gloo" else device_of(model))
    everyone = [torch.empty_like(mine) for _ in range(_world_size())]
    try:
        dist.all_gather(everyone, mine)
    except RuntimeError as error:
        raise PeerError(f"recalibrate lost another process; nothing changed here. {first_line(error)}") from error
    return everyone


def _pack(estimate: Estimate) -> Tensor:
    """Return the estimate as one tensor, (2 + 4C,)."""
    moments = estimate.moments
    counts = moments.mean.new_tensor([estimate.calls, moments.count])
    return torch.cat([counts, moments.mean, moments.m2, estimate.mean_of_means, estimate.mean_of_vars])


def _unpack(packed: Tensor, own: Estimate) -> Estimate:
    """Return the estimate that another process has packed, on the device of `own`."""
    calls, count = (int(n) for n in packed[:2])
    mean, m2, mean_of_means, mean_of_vars = packed[2:].to(own.mean_of_means.device).chunk(4)
    return Estimate(calls, Moments(count, mean, m2), mean_of_means, mean_of_vars)


def _world_size() -> int:
    """Return the number of processes; 0 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 0
