"""Record what `bn.doctor` finds: the bank of planted faults, healthy networks, and one whole case.

    python tools/doctor_records.py bank   # records/doctor/bank.jsonl: every fault in three families; resumes
    python tools/doctor_records.py table  # the table of bank.jsonl, as in records/doctor/README.md
    python tools/doctor_records.py case   # records/doctor/case.json: a network trained with a mistake, mended

The faults and the families are those of tests/doctor/. The case is MNIST, trained by Adam, with a moving average of the
weights as it is often written by hand: over `parameters()`, which leaves the buffers out.
"""

from __future__ import annotations

import copy
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import batchnorm as bn
from batchnorm.paper.mnist.data import load_mnist

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "records" / "doctor"
SEEDS, STEPS, BATCH, DECAY = 3, 300, 64, 0.99


def record_bank() -> None:
    """Write a line per fault and family."""
    sys.path.insert(0, str(ROOT / "tests"))
    from doctor.bank import FAULTS, patient
    from support.patients import FAMILIES, LOSS, pictures

    file = RECORDS / "bank.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    done = {(record["fault"], record["family"]) for record in map(json.loads, lines)}
    with file.open("a") as out:
        for family in FAMILIES:
            for name, (check, plant) in FAULTS.items():
                if (name, family) not in done:
                    cases = plant(patient(family))
                    out.write(json.dumps({"fault": name, "family": family, **_judged(check, cases)}) + "\n")
                    out.flush()
            if ("healthy", family) not in done:
                result = bn.doctor(patient(family).model, pictures(3, 6), loss=LOSS, eval_batches=pictures(4, 6))
                alarms = [finding.check for finding in result.findings if finding.severity != "note"]
                out.write(json.dumps({"fault": "healthy", "family": family, "alarms": alarms}) + "\n")


def _judged(check: str, cases: Any) -> dict[str, Any]:
    ill = next(cases)
    found = [finding for finding in ill.examine().findings if finding.check == check]
    named = [layer for finding in found for layer in finding.layers]
    left = [finding for finding in next(cases).examine().findings if finding.check == check]
    return {
        "check": check,
        "severity": found[0].severity if found else None,
        "layers": list(ill.where),
        "found": bool(found) and set(ill.where) <= set(named),
        "gone": not left,
        "evidence": found[0].evidence if found else "",
    }


def table() -> list[str]:
    """Return the bank as a table: a line a fault, and the layer at which each family has it."""
    records = [json.loads(line) for line in (RECORDS / "bank.jsonl").read_text().splitlines()]
    faults = {record["fault"]: record for record in records if record["fault"] != "healthy"}
    lines = ["| fault | check | severity | found at its layer | gone after the remedy |", "|---|---|---|---|---|"]
    for name, first in faults.items():
        mine = [record for record in records if record["fault"] == name]
        found, gone = (sum(record[key] for record in mine) for key in ("found", "gone"))
        severity = ", ".join(dict.fromkeys(str(record["severity"]) for record in mine))
        cells = (name.replace("_", " "), first["check"], severity, f"{found} of {len(mine)}", f"{gone} of {len(mine)}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def network() -> nn.Module:
    """Return a small convolutional network for MNIST."""
    layers: list[nn.Module] = [nn.Conv2d(1, 16, 5, stride=2, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    layers += [nn.Conv2d(16, 32, 3, stride=2, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 25, 10))


def record_case() -> None:
    """Train, diagnose and mend, for some seeds."""
    mnist = load_mnist()
    images, labels = mnist.train_images.float().view(-1, 1, 28, 28), mnist.train_labels
    unseen, truth = mnist.test_images.float().view(-1, 1, 28, 28), mnist.test_labels
    records = [_one_case(seed, images, labels, unseen, truth) for seed in range(SEEDS)]
    versions = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    setting = {"steps": STEPS, "batch": BATCH, "optimizer": "Adam, lr 0.002", "decay": DECAY, **versions}
    (RECORDS / "case.json").write_text(json.dumps({"setting": setting, "seeds": records}, indent=1) + "\n")


def _one_case(seed: int, images: Tensor, labels: Tensor, unseen: Tensor, truth: Tensor) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = network()
    averaged = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.002)
    order = torch.randperm(len(images)).split(BATCH)
    for chosen in order[:STEPS]:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()
        optimizer.step()
        for mine, theirs in zip(averaged.parameters(), model.parameters(), strict=True):
            mine.data.lerp_(theirs.data, 1 - DECAY)
    batches = [(images[chosen], labels[chosen]) for chosen in order[STEPS : STEPS + 10]]
    model.eval()
    averaged.eval()
    before, result = _accuracy(averaged, unseen, truth), bn.doctor(averaged, batches, loss=nn.CrossEntropyLoss())
    bn.recalibrate(averaged, batches)
    return {
        "seed": seed,
        "accuracy of the network": _accuracy(model, unseen, truth),
        "accuracy of the average": before,
        "findings": [[f.severity, f.check, list(f.layers), f.evidence, f.remedy] for f in result.findings],
        "accuracy after recalibration": _accuracy(averaged, unseen, truth),
        "healthy after recalibration": bn.doctor(averaged, batches, loss=nn.CrossEntropyLoss()).healthy,
    }


@torch.no_grad()
def _accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return float((model(images).argmax(1) == labels).double().mean())


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    RECORDS.mkdir(parents=True, exist_ok=True)
    {"bank": record_bank, "case": record_case, "table": lambda: print("\n".join(table()))}[sys.argv[1]]()
