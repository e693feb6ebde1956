"""The processes of one training: those that torchrun started, or this one alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from ...errors import BatchNormError

Value = TypeVar("Value")


@dataclass(frozen=True)
class Processes:
    """How many there are, which this is, and what they tell one another."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    control: Any = None  # a group of gloo's where the default one is of GPUs, which would have to wait

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag, raised if any process raises it."""
        if self.world_size == 1:
            return flags
        raised = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(raised, dist.ReduceOp.MAX, self.control)
        return tuple(bool(flag) for flag in raised.tolist())

    def sum(self, values: Tensor) -> Tensor:
        """The sum of the processes' values, CPU tensors of one shape."""
        if self.world_size > 1:
            dist.all_reduce(values, dist.ReduceOp.SUM, self.control)
        return values

    def share(self, make: Callable[[], Value]) -> Value:
        """What `make` returns on rank 0, on every process; where it raises BatchNormError there, all raise it."""
        made: list[Any] = [None]
        if self.rank == 0:
            try:
                made = [make()]
            except BatchNormError as error:
                made = [error]
        if self.world_size > 1:
            dist.broadcast_object_list(made, src=0, group=self.control)
        if isinstance(made[0], BatchNormError):
            raise made[0]
        return made[0]

    def replicate(self, model: nn.Module) -> nn.Module:
        """The model, averaging its gradients with its replicas; BN normalises each replica's own mini-batch."""
        if self.world_size == 1:
            return model
        devices = [self.device.index] if self.device.type == "cuda" else None
        # Running statistics are estimated anew where they count. (The option has another name since torch 2.14.)
        known = signature(DistributedDataParallel.__init__).parameters
        options: dict[str, Any] = {
            "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False
        }
        return DistributedDataParallel(model, devices, **options)


ALONE = Processes()


def launched() -> bool:
    """Whether torchrun started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def restarted() -> bool:
    """Whether torchrun started it again, after one of the processes had died."""
    return _restarts() > 0


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def cores_each() -> int:
    """The cores of this machine, divided among its processes."""
    return max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes of torchrun, over NCCL on GPUs and gloo on CPUs; this one alone where it was not used."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if not launched():
        yield Processes(device=device)
        return
    # Processes that torchrun starts again may be given the store of the dead ones, with their old addresses in it.
    store, rank, world_size = next(rendezvous("env://"))
    store = PrefixStore(f"restart-{_restarts()}", store)
    dist.init_process_group("nccl" if cuda else "gloo", store=store, rank=rank, world_size=world_size)
    try:
        control = dist.new_group(backend="gloo") if cuda else None
        yield Processes(rank, world_size, device, control)
        dist.barrier()  # none takes its connections down while another still uses them
    finally:
        dist.destroy_process_group()
