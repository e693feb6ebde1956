"""A script for torchrun: train a synchronized network, save each step, and let one process kill itself once."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import batchnorm as bn
from batchnorm.paper.training.processes import joined, restarted

STEPS = 12


def main() -> None:
    """Train for STEPS steps. Rank 1 dies in step `sys.argv[2]` of the first attempt."""
    torch.set_num_threads(1)
    with joined() as processes:  # torch's own `init_process_group` finds the dead processes after a restart
        train(Path(sys.argv[1]), int(sys.argv[2]), processes.rank)


def train(folder: Path, fatal: int, rank: int) -> None:
    """Go on from the last saved step."""
    torch.manual_seed(0)
    model = bn.synchronize(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 1)))
    saved = sorted(folder.glob("*.pt"))
    if saved:
        model.load_state_dict(torch.load(saved[-1]))
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(int(saved[-1].stem) if saved else 0, STEPS):
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))[2 * rank :][:2]
        loss = ddp(x).square().mean()
        if step == fatal and rank == 1 and not restarted():
            os.kill(os.getpid(), signal.SIGKILL)  # between the forward and the backward
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if rank == 0:
            torch.save(model.state_dict(), folder / "part")
            (folder / "part").rename(folder / f"{step + 1:03}.pt")
        dist.barrier()


if __name__ == "__main__":
    main()
