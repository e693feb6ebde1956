"""Compare the population statistics of `bn.recalibrate` and of its relatives with numpy's in float64.

    python benchmarks/bench_recalibrate.py [records/algorithm2/recalibrate.json]

The relatives are torch's `swa_utils.update_bn` and, if it is installed, fvcore's `update_bn_stats`. With two processes
it is timm's `distribute_bn` after an `update_bn` in each.

The input of the layer is the data itself, so numpy knows its population mean and variance. The error is the larger of
|mean - truth| in standard deviations and |var - truth| / truth, over all channels. The time is that of one pass of
ResNet-18 over 4 batches of 16x3x64x64. The methods alternate, after one warm-up.
"""

from __future__ import annotations

import copy
import json
import math
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from operator import length_hint
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.distributed as dist
import torchvision
from timm.utils.distributed import distribute_bn
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.optim.swa_utils import update_bn

import batchnorm as bn

ROUNDS, THREADS = 7, 2
Case = tuple[nn.Module, list[Tensor], list[Tensor]]
METHODS: dict[str, Callable[[nn.Module, Any], object]] = {
    "torch update_bn": lambda model, batches: update_bn(batches, model),
    "bn.recalibrate": lambda model, batches: bn.recalibrate(model, batches),
}
with suppress(ModuleNotFoundError), warnings.catch_warnings():
    warnings.simplefilter("ignore")  # fvcore calls torch.jit.script on import
    from fvcore.nn.precise_bn import update_bn_stats  # pyright: ignore[reportMissingImports]

    METHODS["fvcore"] = lambda model, batches: update_bn_stats(model, batches, num_iters=length_hint(batches, 1))
SPLITS = {  # name -> batches of process 0, and the shift of the batches of process 1
    "alike": (5, 0.0),
    "a standard deviation apart": (5, 3.0),
    "the same, of 8 batches and of 2": (8, 3.0),
}
PROCESSES: dict[str, Callable[[nn.Module, Any], object]] = {
    "update_bn, timm": lambda model, batches: (update_bn(batches, model), distribute_bn(model, 2, reduce=True)),
    "bn.recalibrate": METHODS["bn.recalibrate"],
}


def normal(n: int, mean: float = 2.0, std: float = 3.0) -> Tensor:
    return torch.randn(n, 8) * std + mean


def even() -> Case:
    batches = list(normal(640).split(64))
    return nn.Sequential(nn.BatchNorm1d(8)), batches, batches


def uneven() -> Case:
    batches = [*normal(640).split(64), normal(4)]
    return nn.Sequential(nn.BatchNorm1d(8)), batches, batches


def sorted_by_class() -> Case:
    batches = [normal(64, mean=float(label)) for label in range(10)]
    return nn.Sequential(nn.BatchNorm1d(8)), batches, batches


def dropout() -> Case:
    batches = list(normal(640).split(64))
    return nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(8)), batches, batches


def one_inf() -> Case:
    clean = list(normal(640).split(64))
    spoilt = normal(64)
    spoilt[0] = math.inf
    return nn.Sequential(nn.BatchNorm1d(8)), [*clean[:5], spoilt, *clean[5:]], clean


def far_from_zero() -> Case:
    batches = list(normal(640, mean=300.0, std=0.05).split(64))
    return nn.Sequential(nn.BatchNorm1d(8)), batches, batches


CASES = {
    "ten equal batches": even,
    "an uneven last batch of 4": uneven,
    "batches sorted by class": sorted_by_class,
    "mean 300, standard deviation 0.05": far_from_zero,
    "Dropout(0.5) before the layer": dropout,
    "one inf in one batch": one_inf,
}


def error(model: nn.Module, counted: list[Tensor]) -> float:
    """Return the larger of the two errors, or inf if the estimate is not finite."""
    (layer,) = (module for module in model.modules() if isinstance(module, nn.BatchNorm1d))
    x = torch.cat(counted).double().numpy()
    mean, var = x.mean(0), x.var(0, ddof=1)
    state = {name: value.double().numpy() for name, value in layer.state_dict().items()}
    errors = [np.abs(state["running_mean"] - mean) / np.sqrt(var), np.abs(state["running_var"] - var) / var]
    worst = float(np.max(errors))
    return worst if math.isfinite(worst) else math.inf


def errors() -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for name, case in CASES.items():
        torch.manual_seed(0)
        model, batches, counted = case()
        found[name] = {}
        for method, run in METHODS.items():
            twin = copy.deepcopy(model).train()
            run(twin, batches)
            found[name][method] = error(twin, counted)
    return found


def errors_of_two() -> dict[str, dict[str, float]]:
    """Return the errors after two processes have merged their statistics."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(process, (folder,), nprocs=2)
        return json.loads((Path(folder) / "errors").read_text())


def process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/start", rank=rank, world_size=2)
    found = {name: errors_of_split(rank, *split) for name, split in SPLITS.items()}
    if rank == 0:
        (Path(folder) / "errors").write_text(json.dumps(found))
    dist.destroy_process_group()


def errors_of_split(rank: int, first: int, shift: float) -> dict[str, float]:
    """Return the errors where process 0 has the `first` of ten batches, and process 1 the rest plus `shift`."""
    torch.manual_seed(0)
    model, batches, _ = even()
    batches = [*batches[:first], *(batch + shift for batch in batches[first:])]
    found = {}
    for method, run in PROCESSES.items():
        twin = copy.deepcopy(model).train()
        run(twin, batches[first:] if rank else batches[:first])
        found[method] = error(twin, batches)
    return found


def held() -> dict[str, dict[str, bool]]:
    """Return, for each method, whether the old statistics are kept in the cases where they should be."""
    found: dict[str, dict[str, bool]] = {"a layer left in eval is kept": {}, "an exception leaves all as it was": {}}
    for method, run in METHODS.items():
        torch.manual_seed(0)
        kept, other = nn.BatchNorm1d(8), nn.BatchNorm1d(8)
        kept(normal(64))
        model = nn.Sequential(kept, other).train()
        kept.eval()
        before = copy.deepcopy(kept.state_dict())
        run(model, [normal(64)])
        found["a layer left in eval is kept"][method] = same(kept, before)
        model.train()
        before, momentum = copy.deepcopy(model.state_dict()), other.momentum
        with suppress(OSError):
            run(model, failing())
        whole = same(model, before) and other.momentum == momentum
        found["an exception leaves all as it was"][method] = whole
    return found


def failing() -> Iterator[Tensor]:
    yield normal(64)
    raise OSError("disk")


def same(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def seconds() -> dict[str, list[float]]:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None).train()
    batches = [torch.randn(16, 3, 64, 64) for _ in range(4)]
    taken: dict[str, list[float]] = {method: [] for method in METHODS}
    for turn in range(ROUNDS + 1):
        for method, run in METHODS.items():
            started = time.perf_counter()
            run(model, batches)
            if turn:
                taken[method].append(time.perf_counter() - started)
    return taken


def show(result: dict[str, Any]) -> None:
    medians = {method: statistics.median(taken) for method, taken in result["seconds"].items()}
    print_rows("error of mean or variance", METHODS, result["errors"], "{:.1e}")
    print_rows("error of two processes", PROCESSES, result["errors_of_two"], "{:.1e}")
    print_rows("old statistics", METHODS, result["held"], "{}")
    print_rows("seconds, median", METHODS, {"ResNet-18, 64 images": medians}, "{:.3f}")


def print_rows(title: str, columns: Iterable[str], rows: dict[str, dict[str, Any]], form: str) -> None:
    print(f"{title:<38}" + "".join(f"{method:>18}" for method in columns))
    for name, row in rows.items():
        print(f"{name:<38}" + "".join(f"{form.format(row[method]):>18}" for method in columns))


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def main() -> None:
    torch.set_num_threads(THREADS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # bn.recalibrate warns about the batch with an inf
        result: dict[str, Any] = {"errors": errors(), "held": held(), "seconds": seconds()}
    result["errors_of_two"] = errors_of_two()
    result["machine"] = {"cpu": cpu(), "threads": THREADS}
    versions = {module.__name__: module.__version__ for module in (torch, timm, bn)}
    result["versions"] = {"python": platform.python_version(), **versions}
    show(result)
    if len(sys.argv) > 1:
        path = Path(sys.argv[1])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1).replace("Infinity", '"inf"') + "\n")


if __name__ == "__main__":
    main()
