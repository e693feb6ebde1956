"""Connect the processes of one training: those that torchrun started, or this one alone."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from inspect import signature
from threading import Timer
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from ...errors import BatchNormError, Failure, PeerError, first_line
from .bounds import Bounds

LOG = logging.getLogger(__name__)
JOIN_SECONDS = 600.0  # to wait for the other processes at the start
NOTICE_SECONDS = 10.0  # of waiting without a word

Value = TypeVar("Value")


@dataclass(frozen=True)
class Processes:
    """The processes of one training, as one of them sees them.

    Arguments:
        rank: the number of this process.
        world_size: the number of processes.
        device: the device that this process trains on.
        control: a gloo group for CPU tensors where the default group is NCCL's; None where the default is gloo's.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    control: Any = None

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return for each flag whether any process gives True."""
        if self.world_size == 1:
            return flags
        raised = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(raised, dist.ReduceOp.MAX, self.control)
        return tuple(bool(flag) for flag in raised.tolist())

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over processes of CPU tensors of one shape."""
        if self.world_size > 1:
            dist.all_reduce(values, dist.ReduceOp.SUM, self.control)
        return values

    def share(self, make: Callable[[], Value]) -> Value:
        """Call `make` on rank 0 and return its result on every process.

        Raises:
            Failure: `make` raised one. Every process raises the same.
        """
        made: list[Any] = [None]
        if self.rank == 0:
            try:
                made = [make()]
            except Failure as error:
                made = [error]
        if self.world_size > 1:
            dist.broadcast_object_list(made, src=0, group=self.control)
        if isinstance(made[0], Failure):
            raise made[0]
        return made[0]

    def replicate(self, model: nn.Module) -> nn.Module:
        """Return a model that averages its gradients over the processes. BN uses each process's own mini-batch."""
        if self.world_size == 1:
            return model
        devices = [self.device.index] if self.device.type == "cuda" else None
        # Every measurement estimates the statistics anew, so no buffer is sent. torch 2.14 renamed the option.
        known = signature(DistributedDataParallel.__init__).parameters
        options: dict[str, Any] = {
            "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False
        }
        return DistributedDataParallel(model, devices, **options)


ALONE = Processes()


def launched() -> bool:
    """Return True if torchrun started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def restarted() -> bool:
    """Return True if torchrun started this process again after one of the processes died."""
    return _restarts() > 0


def _restarts() -> int:
    return _number("TORCHELASTIC_RESTART_COUNT", Bounds(0, 10**9), "0")


def device_type() -> str:
    """Return "cuda" if this process can train on a GPU, otherwise "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def cores_each() -> int:
    """Return the number of CPU cores of this machine for each of its processes."""
    return max(1, (os.cpu_count() or 1) // _number("LOCAL_WORLD_SIZE", Bounds(1, 10**6), "1"))


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the processes that torchrun started, by NCCL on GPUs and gloo on CPUs. Without torchrun, stay alone.

    Raises:
        BatchNormError: an environment variable of torchrun is missing or no number.
        PeerError: another process failed or died, or did not come within `JOIN_SECONDS`.
    """
    cuda = device_type() == "cuda"
    device = torch.device("cpu")
    if cuda:
        device = torch.device("cuda", _number("LOCAL_RANK", Bounds(0, torch.cuda.device_count() - 1), "0"))
        torch.cuda.set_device(device)
    if not launched():
        yield Processes(device=device)
        return
    with _peer_errors():
        store, rank, world_size = _met()
        # After a restart the store may still hold the addresses of the dead processes; a prefix hides them.
        store = PrefixStore(f"restart-{_restarts()}", store)
        dist.init_process_group("nccl" if cuda else "gloo", store=store, rank=rank, world_size=world_size)
        try:
            control = dist.new_group(backend="gloo") if cuda else None
            yield Processes(rank, world_size, device, control)
            dist.barrier()  # no process may close its connections while another still uses them
        finally:
            dist.destroy_process_group()


def _met() -> tuple[Store, int, int]:
    """Wait for the other processes. Return the store that they share, this process's rank, and their number."""
    world_size = _number("WORLD_SIZE", Bounds(1, 10**6))
    rank = _number("RANK", Bounds(0, world_size - 1))
    port = _number("MASTER_PORT", Bounds(0, 65535))
    address = os.environ.get("MASTER_ADDR", "")
    if not address:
        raise BatchNormError("MASTER_ADDR must be the host of rank 0; got nothing. torchrun sets it")
    others = "rank 0" if rank else "the other processes"
    what = f"for {others} at {address}:{port}"
    notice = Timer(NOTICE_SECONDS, LOG.warning, [f"rank {rank} of {world_size} waits {what}, {_limit()} at most"])
    notice.daemon = True
    notice.start()
    try:
        return next(rendezvous("env://", timeout=timedelta(seconds=JOIN_SECONDS)))
    except dist.DistError as error:
        reason = re.sub(r"^\[\S+\] ", "", first_line(error)).partition(". ")[0].rstrip(".")
        advice = "Start them all with torchrun, or unset RANK and WORLD_SIZE to train with one process"
        raise PeerError(f"rank {rank} waited {what} in vain, {_limit()} at most: {reason}. {advice}") from error
    finally:
        notice.cancel()


def _limit() -> str:
    return f"{JOIN_SECONDS:g} seconds"


def _number(variable: str, bounds: Bounds, default: str = "") -> int:
    """Return an integer of torchrun's environment.

    Raises:
        BatchNormError: it is no integer, or out of bounds.
    """
    text = os.environ.get(variable, default)
    number = int(text) if re.fullmatch(r"[0-9]{1,9}", text) else -1
    if not bounds.least <= number <= bounds.most:
        raise BatchNormError(f"{variable} must be an integer {bounds}; got {text!r}. torchrun sets it")
    return number


@contextmanager
def _peer_errors() -> Iterator[None]:
    """Turn torch's error of a lost connection into a PeerError."""
    try:
        yield
    except RuntimeError as error:
        reason = first_line(error)
        # gloo has no error type of its own, but its messages begin with a path in its source.
        if isinstance(error, Failure) or not (isinstance(error, dist.DistError) or "/gloo/" in reason):
            raise
        reason = re.sub(r"^\[\S+\] ", "", reason).partition(". ")[0]
        raise PeerError(f"lost another process of this training, see its own message ({reason})") from error
