"""Processes of one gloo group that stay alive over many tests. Starting them takes longer than what they compute."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from support.commands import FORKSERVER


class Ranks:
    """The processes, and a group of the first 1, 2, ... of them."""

    def __init__(self, processes: int, folder: Path) -> None:
        pipes = [FORKSERVER.Pipe() for _ in range(processes)]
        self._connections = [own for own, _ in pipes]
        self._processes = [
            FORKSERVER.Process(target=_serve, args=(rank, processes, str(folder), theirs), daemon=True)
            for rank, (_, theirs) in enumerate(pipes)
        ]
        for process in self._processes:
            process.start()

    def run(self, function: Callable[..., Any], *arguments: Any, processes: int | None = None) -> list[Any]:
        """Return `function(rank, group, *arguments)` of the first `processes`, or of all. Raise what one raised."""
        used = self._connections[:processes]
        for connection in used:
            connection.send_bytes(pickle.dumps((function, arguments, len(used))))
        found = [pickle.loads(connection.recv_bytes()) for connection in used]
        failed = [text for ok, text in found if not ok]
        assert not failed, "\n".join(failed)
        return [result for _, result in found]

    def close(self) -> None:
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.join(30)


def _serve(rank: int, processes: int, folder: str, connection: Connection) -> None:
    torch.set_num_threads(1)
    settings = {"rank": rank, "world_size": processes, "timeout": timedelta(seconds=60)}
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", **settings)
    groups = {n: dist.new_group(list(range(n))) for n in range(1, processes + 1)}
    while True:
        try:
            function, arguments, n = pickle.loads(connection.recv_bytes())
        except EOFError:  # the test closed its end
            return
        try:
            answer = True, function(rank, groups[n], *arguments)
        except Exception:
            answer = False, f"rank {rank}: {traceback.format_exc()}"
        connection.send_bytes(pickle.dumps(answer))
