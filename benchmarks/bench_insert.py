"""Measure how well `bn.insert(..., batches=)` keeps the function of torchvision's networks without BN.

    python benchmarks/bench_insert.py [records/algorithm2/insert.json]

The weights are random: He's for convolutions, else as each network starts. The batches are noise. The error is the
largest difference of the new network from the old one in eval mode on a batch that neither has seen, relative to the
largest output, in float32. Before that the old network's checkpoint is loaded into the new one. Misfits are missing and
unexpected keys, except those of the new layers and of dropped biases.
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

import batchnorm as bn

NETWORKS = ("alexnet", "squeezenet1_0", "squeezenet1_1", "vgg11", "vgg13", "vgg16", "vgg19")
NORM_KEYS = ("weight", "bias", "running_mean", "running_var")
THREADS = 2


@torch.no_grad()
def measure(name: str) -> dict[str, Any]:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.normal_(layer.bias, std=0.1)
    batches = [torch.randn(8, 3, 64, 64) for _ in range(3)]
    result = bn.insert(model, batches[0], batches=batches)
    misfits = load_old(result, model.state_dict())
    unseen = torch.randn(8, 3, 64, 64)
    wanted = model(unseen)
    error = float((result.model(unseen) - wanted).abs().max() / wanted.abs().max())
    counts = {"inserted": result.inserted, "skipped": result.skipped}
    return {"network": name, **counts, "error": error, **misfits}


def load_old(result: bn.InsertResult, checkpoint: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Load the plain network's checkpoint. Return what does not fit."""
    found = result.model.load_state_dict(checkpoint, strict=False)
    placed = [row for row in result.rows if row.outcome == "inserted"]
    new = {f"{row.layer}.{key}" for row in placed for key in NORM_KEYS}
    dropped = {f"{row.name}.bias" for row in placed if row.bias == "dropped"}
    return {
        "keys_loaded": len(checkpoint) - len(found.unexpected_keys),
        "biases_dropped": len(dropped),
        "misfits": sorted(set(found.missing_keys) ^ new | set(found.unexpected_keys) ^ dropped),
    }


def main() -> None:
    torch.set_num_threads(THREADS)
    records = []
    for name in NETWORKS:
        records.append(measure(name))
        line = "{network:<16}{inserted:>4} inserted{skipped:>4} skipped  error {error:.1e}  misfits {misfits}"
        print(line.format(**records[-1]), flush=True)
    versions = {module.__name__: module.__version__ for module in (torch, torchvision, bn)}
    conditions = {"versions": versions, "processor": platform.machine(), "threads": THREADS, "seed": 0}
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps({"conditions": conditions, "records": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
