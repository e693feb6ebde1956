"""Count the false alarms of `bn.doctor` over torchvision's and timm's networks: none of them is ill.

    python benchmarks/bench_doctor.py            # all networks, into records/doctor/zoo.jsonl; goes on after a stop
    python benchmarks/bench_doctor.py resnet18   # some networks, printed alone

Every network has random weights, and the statistics of noise, estimated by `bn.recalibrate`. The doctor then sees other
noise. Every error or warning is a false alarm. A line per network is written as soon as it is examined.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

import batchnorm as bn

HERE = Path(__file__).parent
RECORDS = HERE.parent / "records" / "doctor" / "zoo.jsonl"
EXAMPLES, CALIBRATION, EXAMINED = 8, 8, 6  # per batch; batches of each
SIZE = 64  # height and width of the pictures, where the network takes that
# Their attention pads such small maps to whole windows, and the doctor rightly finds padding: they get their own size.
PAD_WINDOWS = ("timm/efficientvit_m0", "timm/efficientvit_m1")
LARGEST = 100e6  # parameters


def build(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    """Return the network with its own initial weights, and a size that it takes."""
    torch.manual_seed(0)
    if name.startswith("timm/"):
        model: Any = timm.create_model(name.removeprefix("timm/"))
        size = model.pretrained_cfg["input_size"]
    else:
        options = {"init_weights": False, "aux_logits": False} if name in ("googlenet", "inception_v3") else {}
        model = torchvision.models.get_model(name, weights=None, **options)
        size = (3, 299, 299) if name == "inception_v3" else (3, 224, 224)
    if name in PAD_WINDOWS:
        return model.eval(), size
    with contextlib.suppress(Exception), torch.no_grad():
        model.eval()(torch.randn(2, size[0], SIZE, SIZE))
        size = (size[0], SIZE, SIZE)
    return model.eval(), size


def batches(size: tuple[int, int, int], seed: int, count: int) -> list[Tensor]:
    """Return seeded noise."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(EXAMPLES, *size, generator=generator) for _ in range(count)]


def examine(name: str) -> dict[str, Any]:
    """Return what the doctor says of one network."""
    model, size = build(name)
    if sum(p.numel() for p in model.parameters()) > LARGEST:
        return {"network": name, "left out": "over 100 million parameters"}
    bn.recalibrate(model, batches(size, 1, CALIBRATION))
    start = time.perf_counter()
    result = bn.doctor(model, batches(size, 2, EXAMINED))
    seconds = time.perf_counter() - start
    alarms = [
        {"check": f.check, "severity": f.severity, "layers": len(f.layers), "evidence": f.evidence}
        for f in result.findings
        if f.severity != "note"
    ]
    notes = sorted({f.check for f in result.findings if f.severity == "note"})
    record = {"network": name, "size": size[1], "layers": len(result.rows), "seconds": round(seconds, 1)}
    return {**record, "alarms": alarms, "notes": notes, "unexamined": list(result.unexamined)}


def by_layers() -> list[str]:
    """Return the networks with the fewest BN layers first, so that a stop leaves a record of many."""
    records = json.loads((HERE.parent / "records/zoo/results.json").read_text())["records"]
    return [record["network"] for record in sorted(records, key=lambda record: record["layers"])]


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    chosen = sys.argv[1:] or by_layers()
    done = set()
    if not sys.argv[1:] and RECORDS.exists():
        done = {json.loads(line)["network"] for line in RECORDS.read_text().splitlines()}
    RECORDS.parent.mkdir(parents=True, exist_ok=True)
    for name in chosen:
        if name in done:
            continue
        line = json.dumps(examine(name))
        print(line, flush=True)
        if not sys.argv[1:]:
            with RECORDS.open("a") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    main()
