"""Measure how much of torchvision's and timm's networks `bn.fold` folds and `bn.fuse` fuses, beside torch.fx.

    python benchmarks/bench_zoo.py                      # what folds, into records/zoo/results.json and table.md
    python benchmarks/bench_zoo.py --fuse               # what bn.fuse fuses, into fuse.json
    python benchmarks/bench_zoo.py --time               # the latency, into latency.json
    python benchmarks/bench_zoo.py --time resnet18      # of some networks; the others keep their records
    python benchmarks/bench_zoo.py --time --missing     # of the networks without a record, to go on after a stop

Every record is written as soon as its network is measured.

Every network has random weights, statistics and affine parameters (a tenth of the gammas negative), from one seed.
Correctness comes first. The error is the largest difference of the folded network from the given one, relative to its
largest output, in float32 and in float64, on a batch of one and of two. The images are 96x96 where the network takes
that, otherwise of its own resolution. The latency is of a batch of one at the network's own resolution; the two
networks alternate.
"""

from __future__ import annotations

import contextlib
import copy
import json
import platform
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse as fx_fuse
from torch.nn.modules.batchnorm import _BatchNorm

import batchnorm as bn

HERE = Path(__file__).parent
RECORDS = HERE.parent / "records" / "zoo"
THREADS, TURNS = 2, 9  # of the latency; the rest is measured on one thread
LIMIT = 1e-5  # relative error in float32
SPREAD = 0.25  # of times; above it another process used the machine, and nothing is recorded
FUNCTION_KEPT = 1e-3  # relative; a network with a larger error is not timed


def names() -> list[str]:
    """Return the names in `zoo_networks.txt`. Those of timm begin with "timm/"."""
    return (HERE / "zoo_networks.txt").read_text().split()


def build(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """Return the network in eval mode with random statistics and affine parameters, and its own resolution."""
    torch.manual_seed(0)
    if name.startswith("timm/"):
        model: Any = timm.create_model(name.removeprefix("timm/"))
        size: tuple[int, ...] = model.pretrained_cfg["input_size"]
    else:
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        model = torchvision.models.get_model(name, weights=None, **options)
        size = (3, 299, 299) if name == "inception_v3" else (3, 224, 224)
    for layer in model.modules():
        if isinstance(layer, _BatchNorm):
            randomize(layer)
    return model.eval(), size


def small_input(model: nn.Module, size: tuple[int, ...]) -> Tensor:
    """Return a batch of one at 96x96, or at `size` if the network does not take 96x96."""
    for shape in ((size[0], 96, 96), size):
        x = torch.randn(1, *shape)
        with contextlib.suppress(Exception), torch.no_grad():
            model(x)
            return x
    raise RuntimeError(f"the network does not take its own resolution {size}")


@torch.no_grad()
def randomize(layer: _BatchNorm) -> None:
    layer.get_buffer("running_mean").normal_(0, 0.5)
    layer.get_buffer("running_var").uniform_(0.5, 2)
    if layer.affine:
        layer.weight.uniform_(0.5, 1.5).mul_(torch.where(torch.rand_like(layer.weight) < 0.1, -1, 1))
        layer.bias.normal_(0, 0.5)


def folded_by_fx(model: nn.Module, x: Tensor, layers: int) -> dict[str, Any]:
    """Return how many of `layers` torch.fx's fuse folds, and its error."""
    try:
        fused: Any = fx_fuse(model)
    except Exception as error:
        return {"folded": 0, "error": None, "failure": f"{type(error).__name__}: {error}"[:200]}
    left = sum(
        (node.op == "call_module" and isinstance(fused.get_submodule(str(node.target)), _BatchNorm))
        or node.target is torch.nn.functional.batch_norm
        for node in fused.graph.nodes
    )
    with torch.no_grad():
        wanted = model(x)
        error = float((fused(x) - wanted).abs().max() / wanted.abs().max())
    return {"folded": layers - left, "error": error, "failure": None}


@torch.no_grad()
def conditioning(model: nn.Module, x: Tensor) -> dict[str, float]:
    """Return, for a network above the limit, its own float32 error and the error of folding it in double."""
    double = copy.deepcopy(model).double()
    return {"own_error_float32": own_error(model, x), "folded_in_double": bn.fold(double, x.double()).max_error}


@torch.no_grad()
def own_error(model: nn.Module, x: Tensor) -> float:
    """Return how far the network's output in float32 is from its own output in float64."""
    wanted = copy.deepcopy(model).double()(x.double())
    return float((model(x) - wanted).abs().max() / wanted.abs().max())


def latency(before: nn.Module, after: nn.Module, x: Tensor) -> tuple[list[float], list[float]]:
    """Return the milliseconds of each call. The two networks alternate."""
    times: tuple[list[float], list[float]] = ([], [])
    with torch.no_grad():
        for turn in range(TURNS + 2):
            for model, into in zip((before, after), times, strict=True):
                start = time.perf_counter()
                model(x)
                if turn >= 2:
                    into.append(round(1e3 * (time.perf_counter() - start), 3))
    return times


def measure(name: str) -> dict[str, Any]:
    model, size = build(name)
    x = small_input(model, size)
    try:
        result = bn.fold(model, x, tolerance=1.0)
    except bn.BatchNormError as error:
        layers = sum(isinstance(layer, _BatchNorm) for layer in model.modules())
        return {"network": name, "layers": layers, "folded": 0, "failure": str(error)}
    return {
        "network": name,
        "input": list(x.shape),
        "layers": len(result.rows),
        "folded": result.folded,
        "errors": result.errors,
        "conditioning": conditioning(model, x) if result.max_error > LIMIT else None,
        "fx": folded_by_fx(model, x, len(result.rows)),
        "left": {row.name: row.reason for row in result.rows if row.outcome != "folded"},
        "failure": None,
    }


def timed(name: str) -> dict[str, Any]:
    model, size = build(name)
    x = torch.randn(1, *size)
    folded = bn.fold(model, small_input(model, size), tolerance=1.0).model
    if not error(folded, model, x) < FUNCTION_KEPT:  # some networks take only the size of the example
        folded = bn.fold(model, x, tolerance=1.0).model
    before, after = latency(model, folded, x)
    return {"network": name, "input": list(x.shape), "ms_before": before, "ms_after": after}


@torch.no_grad()
def error(got: nn.Module, wanted: nn.Module, x: Tensor) -> float:
    with contextlib.suppress(RuntimeError):
        y = wanted(x)
        return float((got(x) - y).abs().max() / y.abs().max())
    return float("inf")


def table(records: list[dict[str, Any]], times: list[dict[str, Any]]) -> str:
    """Return the records as a table in Markdown, with the latency of the networks that were timed."""
    latencies = {r["network"]: [statistics.median(r[key]) for key in ("ms_before", "ms_after")] for r in times}
    lines = [
        "| network | BN | torch.fx | bn.fold | error float32 | error float64 | ms before | ms after |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in records:
        if r["failure"]:
            lines.append(f"| {r['network']} | {r['layers']} | | fails | | | | |")
            continue
        error = r["fx"]["error"]
        fx = "fails" if error is None else f"{r['fx']['folded']}" + (f" (error {error:.1g})" if error > 1e-4 else "")
        errors = f"{r['errors']['float32']:.1e} | {r['errors'].get('float64', float('nan')):.1e}"
        ms = " | ".join(f"{time:.1f}" for time in latencies[r["network"]]) if r["network"] in latencies else " | "
        lines.append(f"| {r['network']} | {r['layers']} | {fx} | {r['folded']} | {errors} | {ms} |")
    return "\n".join(lines)


def totals(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the numbers that the README claims."""
    good = [r for r in records if not r["failure"]]
    layers = sum(r["layers"] for r in records)
    return {
        "networks": len(records),
        "layers": layers,
        "folded": sum(r["folded"] for r in records),
        "share": sum(r["folded"] for r in records) / layers,
        "free_of_batch_norm": sum(r["folded"] == r["layers"] for r in good),
        "failed": len(records) - len(good),
        "above_limit": [r["network"] for r in good if r["errors"]["float32"] > LIMIT],
        "worst_error_float32": max((r["errors"]["float32"] for r in good), default=None),
        "worst_error_float64": max((r["errors"].get("float64", 0.0) for r in good), default=None),
        "fx_folded": sum(r["fx"]["folded"] for r in good),
        "fx_share": sum(r["fx"]["folded"] for r in good) / layers,
        "fx_failed": sum(r["fx"]["failure"] is not None for r in good),
        "fx_wrong": sum((r["fx"]["error"] or 0) > 1e-4 for r in good),
    }


def conditions() -> dict[str, Any]:
    versions = {module.__name__: module.__version__ for module in (torch, torchvision, timm, bn)}
    return {
        "versions": versions,
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "seed": 0,
    }


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{found[0]}, {len(found)} cores" if found else platform.machine()


def write(file: str, **content: Any) -> None:
    RECORDS.mkdir(parents=True, exist_ok=True)
    (RECORDS / file).write_text(json.dumps({"conditions": conditions(), **content}, indent=1) + "\n")


def write_table() -> None:
    """Write records/zoo/table.md from the records."""
    (RECORDS / "table.md").write_text(table(recorded("results.json"), recorded("latency.json")) + "\n")


def record(file: str, measured: Callable[[str], dict[str, Any] | None], wanted: list[str]) -> list[dict[str, Any]]:
    """Measure the `wanted` networks and keep the records of the others. Write the file after each."""
    known = {r["network"]: r for r in recorded(file)}
    order = names()
    for name in wanted:
        if found := measured(name):
            known[name] = found
            records = sorted(known.values(), key=lambda r: order.index(r["network"]))
            write(file, totals=TOTALS[file](records), records=records)
            write_table()
    return list(known.values())


def timed_in_peace(name: str) -> dict[str, Any] | None:
    """Return the times of a network, or None if another process used the machine meanwhile."""
    times = timed(name)
    before, after = (statistics.median(times[key]) for key in ("ms_before", "ms_after"))
    print(f"{name:<40}{before:>9.1f} ms{after:>9.1f} ms, spread {spread(times):.0%}", flush=True)
    return times if spread(times) <= SPREAD else None


def latency_totals(records: list[dict[str, Any]]) -> dict[str, Any]:
    ratios = [statistics.median(r["ms_before"]) / statistics.median(r["ms_after"]) for r in records]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return {
        "networks": len(ratios),
        "faster": sum(ratio > 1 for ratio in ratios),
        "before_over_after": {"median": middle, "quartiles": [low, high], "range": [min(ratios), max(ratios)]},
    }


def spread(record: dict[str, Any]) -> float:
    """Return the larger distance between the quartiles of the two networks' times, relative to the median."""
    quartiles = [statistics.quantiles(record[key], n=4) for key in ("ms_before", "ms_after")]
    return max((high - low) / middle for low, middle, high in quartiles)


def fuse_totals(records: list[dict[str, Any]]) -> dict[str, Any]:
    good = [r for r in records if r["failure"] is None]
    return {
        "networks": len(records),
        "layers": sum(r["layers"] for r in good),
        "fused": sum(r["fused"] for r in good),
        "others": dict(sum((Counter(r["others"]) for r in good), Counter()).most_common()),
        "failed": len(records) - len(good),
        "above_limit": [r["network"] for r in good if r["error"] > LIMIT],
        "worst_of_the_others": max((r["error"] for r in good if r["error"] <= LIMIT), default=None),
    }


def fused(name: str) -> dict[str, Any]:
    """Return how many layers of a network `bn.fuse` fuses, why not the others, and the error on another batch."""
    model, size = build(name)
    x = small_input(model, size)
    try:
        result = bn.fuse(model, x)
    except bn.BatchNormError as refused:
        return {"network": name, "layers": 0, "fused": 0, "others": {}, "error": None, "failure": str(refused)}
    others = Counter(f"{row.outcome}: {general(row.reason)}" for row in result.rows if row.outcome != "fused")
    unseen = torch.randn(3, *x.shape[1:])
    difference = error(result.model, model, unseen)
    record = {"network": name, "layers": len(result.rows), "fused": result.fused, "others": dict(others)}
    record |= {"error": difference, "failure": None}
    return record | ({"own_error_float32": own_error(model, unseen)} if difference > LIMIT else {})


def general(reason: str) -> str:
    """Return a reason without the names of one network."""
    reason = re.sub(r"^[^ ]+ adds it", "another normalization adds it", reason)
    return re.sub(r"_\d+ follows it", " follows it", reason)


def recorded(file: str) -> list[dict[str, Any]]:
    return json.loads((RECORDS / file).read_text())["records"] if (RECORDS / file).exists() else []


def printed(measured: Callable[[str], dict[str, Any]]) -> Callable[[str], dict[str, Any]]:
    def measure_and_print(name: str) -> dict[str, Any]:
        found = measured(name)
        print(*(value for value in found.values() if not isinstance(value, dict)), flush=True)
        return found

    return measure_and_print


TOTALS = {"results.json": totals, "latency.json": latency_totals, "fuse.json": fuse_totals}


def main() -> None:
    torch.set_num_threads(THREADS if "--time" in sys.argv else 1)
    file, measured = "results.json", printed(measure)
    if "--time" in sys.argv:
        file, measured = "latency.json", timed_in_peace
    elif "--fuse" in sys.argv:
        file, measured = "fuse.json", printed(fused)
    wanted = [name for name in sys.argv[1:] if not name.startswith("--")] or names()
    if "--missing" in sys.argv:
        done = {r["network"] for r in recorded(file)}
        wanted = [name for name in wanted if name not in done]
    if records := record(file, measured, wanted):
        print(json.dumps(TOTALS[file](records), indent=1))


if __name__ == "__main__":
    main()
