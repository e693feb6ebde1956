"""Statistics that differ between the processes of one job."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist

from ..examination import Examination
from ..finding import Finding

SAME = 1e-6  # relative: copies of one buffer have the same bits


def ranks_differ(e: Examination) -> Iterator[Finding]:
    """Find running statistics that differ between the processes of `torch.distributed`.

    Test: the buffers of all ranks against this one's. Threshold: 1e-6 of their largest value; copies are equal. Every
    process must call the doctor, and all of them find the same.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    found = {}
    for name, layer in e.layers.items():
        if layer.running_mean is None or layer.running_var is None:
            continue
        mine = torch.cat([layer.running_mean, layer.running_var]).double()
        mine = mine.to("cpu" if dist.get_backend() == "gloo" else mine.device)
        everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, mine)
        apart = torch.stack(everyone).amax(0) - torch.stack(everyone).amin(0)
        if not float(apart.max()) <= SAME * float(mine.abs().max()):
            found[name] = float(apart.max())
    if found:
        name = max(found, key=lambda each: found[each])
        evidence = (
            f"{name}: running statistics differ by up to {found[name]:.3g} between {dist.get_world_size()} processes"
        )
        reason = "each process tracks its own batches, and which of them is saved decides how good the network is"
        remedy = "bn.recalibrate(model, batches) in all processes, which merges them; or SyncBatchNorm in training"
        yield Finding("ranks differ", "warning", tuple(found), evidence, reason, remedy)
