"""`synchronize` and `desynchronize`: statistics over all processes of `torch.distributed`."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ..errors import BatchNormError
from ..kernels.meeting import Meeting, check_same
from ..torch_private import AnyBatchNorm
from .attached import layers_of, refuse_lazy, settle, special_of


def synchronize(model: nn.Module, process_group: Any = None) -> nn.Module:
    """Let every BN layer of `model` take its statistics over all processes, in place.

    In training, each layer normalizes by the values of all processes, as one process with the whole batch would. The
    counts may differ, as with unequal heights, and a process may have an empty batch. Masks combine with it. Virtual
    batches stay within their process, and the running statistics are those of all.

    Every layer exchanges count, mean and m2 once in the forward, and two sums once in the backward, in float64. A
    layer's weight and bias get the gradient of the process's own values. DistributedDataParallel averages them.

    Unlike `torch.nn.SyncBatchNorm` it runs on CPUs, with any backend, and keeps the activation of subclasses. If a
    process skips a layer, or is in another one, all get an error that names both, where collectives would hang.

    Arguments:
        model: any network. Layers of this package, of torch, and subclasses of either. Those that are
            `SyncBatchNorm` become synchronized by this package. Call it on every process, before
            DistributedDataParallel, with the same network.
        process_group: the processes to share with, in a group that nothing else uses, so that a process that skips a
            layer is noticed. None means all processes, in a new group.

    Returns:
        The model itself.

    Raises:
        BatchNormError: `torch.distributed` is not initialized, this process is not in the group, there is no BN layer,
            or one is lazy and has no channels yet.
        PeerError: another process has other layers. In a forward or backward, if another process is in another layer,
            failed, or did not answer within the timeout of the process group.

    Example:
        >>> import torch
        >>> import batchnorm as bn
        >>> store = torch.distributed.HashStore()
        >>> torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        >>> model = bn.synchronize(torch.nn.Sequential(torch.nn.BatchNorm1d(1)))
        >>> model(torch.tensor([[1.0], [3.0]])).detach()
        tensor([[-1.0000],
                [ 1.0000]])
        >>> torch.distributed.destroy_process_group()
    """
    layers = layers_of(model, "synchronize")
    if not (dist.is_available() and dist.is_initialized()):
        raise BatchNormError(
            "synchronize wants the processes of torch.distributed; got none. Start the script with torchrun, and call "
            "torch.distributed.init_process_group first."
        )
    refuse_lazy(layers, "synchronize")
    group = _group(process_group)
    channels = {name: layer.num_features for name, layer in layers.items()}
    check_same(group, channels)
    for index, layer in enumerate(layers.values()):
        special_of(layer).meeting = Meeting(group, tuple(layers), index, max(channels.values()))
    return model


def desynchronize(model: nn.Module) -> nn.Module:
    """Let every BN layer of `model` take its statistics over its own process again, in place.

    Arguments:
        model: any network, synchronized or not. A `SyncBatchNorm` that `synchronize` took over is torch's again.

    Returns:
        The model itself.

    Example:
        >>> import torch
        >>> import batchnorm as bn
        >>> model = bn.desynchronize(torch.nn.Sequential(torch.nn.BatchNorm1d(1)))
    """
    for layer in model.modules():
        if isinstance(layer, AnyBatchNorm):
            special_of(layer).meeting = None
            settle(layer)
    return model


def _group(given: Any) -> Any:
    """Return the given group, or a new one of all processes, for nothing else, with the same timeout.

    In a shared group, a process that skips a layer would answer with another collective, and all would hang.
    """
    if given is None:
        return dist.new_group(timeout=_timeout(dist.group.WORLD))
    if dist.get_rank(given) < 0:
        raise BatchNormError(f"rank {dist.get_rank()} is not in the process group that synchronize got")
    return given


def _timeout(group: Any) -> timedelta | None:
    """Return the timeout of a group. None, the default of the backend, if torch does not tell."""
    device = torch.device("cuda" if dist.get_backend(group) == "nccl" else "cpu")
    options = getattr(group._get_backend(device), "options", None)
    return getattr(options, "_timeout", None)
