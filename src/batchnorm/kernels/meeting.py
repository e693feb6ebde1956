"""Exchange numbers between the processes of `torch.distributed`, and notice when they are in different layers."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from itertools import zip_longest
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import BatchNormError, PeerError, first_line
from ..moments import Moments
from ..torch_private import process_group_store

_HEADER = 3  # layer, direction, channels
_DIRECTIONS = ("forward", "backward")
_GRACE = 1.0  # seconds for the other waiting processes to say that they wait, after the timeout of the group


@dataclass(frozen=True)
class Meeting:
    """The processes that share the statistics of one layer.

    Every exchange has the same size. So processes in different layers get an error that names both. Collectives of
    different sizes would hang.

    A copy of a layer shares the meeting. A pickled layer loses it, because its processes are gone.

    Arguments:
        group: the processes, in a group that nothing else uses.
        names: the names of all layers of the network that share statistics, in order.
        index: which of them this layer is.
        channels: the most channels that any of them has.
    """

    group: Any
    names: tuple[str, ...]
    index: int
    channels: int

    def __deepcopy__(self, _: dict[int, Any]) -> Meeting:
        return self

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return type(None), ()

    def merge(self, own: Moments) -> Moments:
        """Return the moments of all processes together, merged in the order of the ranks."""
        channels = len(own.mean)
        count = own.mean.new_tensor([own.count])
        rows = self._exchange(0, channels, torch.cat((count, own.mean, own.m2)))
        counts = rows[:, 0].tolist()
        parts = rows[:, 1:].unflatten(1, (2, channels)).unbind()
        return reduce(
            Moments.merge,
            (Moments(int(n), *part.unbind()) for n, part in zip(counts, parts, strict=True) if n),
            Moments(0, torch.zeros_like(own.mean), torch.zeros_like(own.m2)),
        )

    def sum(self, own: Tensor) -> Tensor:
        """Return the sum of own (2, C), in float64, over all processes."""
        return self._exchange(1, own.shape[1], own.flatten()).sum(0).view_as(own)

    def _exchange(self, direction: int, channels: int, values: Tensor) -> Tensor:
        """Return the values of every process, (processes, len(values))."""
        if channels > self.channels:
            raise BatchNormError(
                f"layer {self.names[self.index]!r} got {channels} channels; synchronized layers have at most "
                f"{self.channels}. Call bn.synchronize after the last change of the network."
            )
        header = values.new_tensor([self.index, direction, channels])
        sent = values.new_zeros(_HEADER + 1 + 2 * self.channels)
        sent[: _HEADER + len(values)] = torch.cat((header, values))
        ranks = self._ranks()
        parts = [torch.empty_like(sent) for _ in ranks]
        try:
            dist.all_gather(parts, sent, group=self.group)
        except RuntimeError as error:
            where = f"the {_DIRECTIONS[direction]} of layer {self.names[self.index]!r}"
            raise _absence(self.group, ranks, where, error) from error
        found = torch.stack(parts)
        self._check(dict(zip(ranks, found[:, :_HEADER].tolist(), strict=True)))
        return found[:, _HEADER : _HEADER + len(values)]

    def _ranks(self) -> list[int]:
        """Return the ranks of the processes. Raise BatchNormError if their group is no more."""
        try:
            return dist.get_process_group_ranks(self.group)
        except (ValueError, KeyError) as error:
            raise BatchNormError(
                f"layer {self.names[self.index]!r} is synchronized, but its process group was destroyed. "
                "Call bn.synchronize again, or bn.desynchronize."
            ) from error

    def _check(self, headers: dict[int, list[float]]) -> None:
        """Raise PeerError unless all processes are in the same layer. The headers are by rank."""
        own_rank = dist.get_rank()
        own = headers[own_rank]
        for rank, other in headers.items():
            if other != own:
                raise PeerError(
                    f"rank {rank} is in {self._described(other)}, rank {own_rank} in {self._described(own)}. Every "
                    "process must run the same layers in the same order. Give one without examples an empty batch."
                )

    def _described(self, header: list[float]) -> str:
        index, direction, channels = map(int, header)
        return f"the {_DIRECTIONS[direction]} of layer {self.names[index]!r} ({channels} channels)"


class Alone(Meeting):
    """A meeting of one process, which waits for no other. For a forward without a backward."""

    def __init__(self) -> None:
        super().__init__(None, (), 0, 0)

    def merge(self, own: Moments) -> Moments:
        """Return the moments of this process."""
        return own


def check_same(group: Any, channels: Mapping[str, int]) -> None:
    """Raise PeerError unless all processes of the group have the same layers, given as channels by name.

    Their exchanges would have different sizes, for which gloo ends the process.
    """
    ranks, own = dist.get_process_group_ranks(group), list(channels.items())
    found: list[Any] = [None] * len(ranks)
    try:
        dist.all_gather_object(found, own, group=group)
    except RuntimeError as error:
        raise _absence(group, ranks, "bn.synchronize", error) from error
    for rank, other in zip(ranks, found, strict=True):
        theirs, mine = next((pair for pair in zip_longest(other, own) if pair[0] != pair[1]), (None, None))
        if theirs != mine:
            raise PeerError(
                f"rank {rank} synchronizes {_layer(theirs)} where rank {dist.get_rank()} has {_layer(mine)}. Build "
                "the same network in every process."
            )


def _layer(described: tuple[str, int] | None) -> str:
    return "no layer" if described is None else f"layer {described[0]!r} ({described[1]} channels)"


def _absence(group: Any, ranks: Iterable[int], where: str, error: RuntimeError) -> PeerError:
    """Return the error of a process that waited in vain. It names the processes that do not wait too."""
    own = dist.get_rank()
    try:
        store = process_group_store(group)
        store.set(f"waited/{own}", "")
        time.sleep(_GRACE)
        absent = [str(rank) for rank in ranks if not store.check([f"waited/{rank}"])]
    except RuntimeError:  # the process that held the store is gone
        absent = []
    came = f"rank {' and rank '.join(absent)}" if absent else "the other processes"
    return PeerError(
        f"rank {own} waited in {where} for {came}: {first_line(error)}. A process that does not come has failed, "
        "skipped the layer, or is slower than the timeout of the process group."
    )
