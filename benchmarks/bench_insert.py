"""How well `bn.insert(..., keep_function=)` keeps the function of torchvision's networks without batch normalization.

    python benchmarks/bench_insert.py [records/algorithm2/insert.json]

Weights as each network starts, He's for convolutions; batches of noise. The error is the largest difference of the new
network from the old one in eval mode on a batch that neither has seen, relative to the largest output, in float32.
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

NETWORKS = ("alexnet", "squeezenet1_0", "squeezenet1_1", "vgg11")
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
    batches = [torch.randn(8, 3, 96, 96) for _ in range(3)]
    result = bn.insert(model, batches[0], keep_function=batches)
    unseen = torch.randn(8, 3, 96, 96)
    wanted = model(unseen)
    error = float((result.model(unseen) - wanted).abs().max() / wanted.abs().max())
    counts = {action: sum(row.action == action for row in result.rows) for action in ("inserted", "skipped")}
    return {"network": name, **counts, "error": error}


def main() -> None:
    torch.set_num_threads(THREADS)
    records = []
    for name in NETWORKS:
        records.append(measure(name))
        print("{network:<16}{inserted:>4} inserted{skipped:>4} skipped  error {error:.1e}".format(**records[-1]))
    versions = {module.__name__: module.__version__ for module in (torch, torchvision, bn)}
    conditions = {"versions": versions, "processor": platform.machine(), "threads": THREADS, "seed": 0}
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps({"conditions": conditions, "records": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
