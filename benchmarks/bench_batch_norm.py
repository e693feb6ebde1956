"""BN + ReLU of the 69 layers of BN-Inception at batch 32 (Fig. 5): torch eager, torch.compile and the fused kernels.

Every contender is checked against float64 before the clock starts; then they alternate, shape by shape, in one
process. The median of the rounds counts; the spread beside it is from the 10th to the 90th percentile of the rounds'
sums. The record holds every round.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn

import batchnorm as bn

BATCH = 32
# Module: side, and the channels of 1x1, 3x3 reduce, 3x3, double 3x3 reduce, double 3x3 (twice), projection.
MODULES = {
    "3a": (28, 64, 64, 64, 64, 96, 32),
    "3b": (28, 64, 64, 96, 64, 96, 64),
    "4a": (14, 224, 64, 96, 96, 128, 128),
    "4b": (14, 192, 96, 128, 96, 128, 128),
    "4c": (14, 160, 128, 160, 128, 160, 96),
    "4d": (14, 96, 128, 192, 160, 192, 96),
    "5a": (7, 352, 192, 320, 160, 224, 128),
    "5b": (7, 352, 192, 320, 192, 224, 128),
}
STRIDED = {"3c": (28, 128, 160, 64, 96), "4e": (14, 128, 192, 192, 256)}
FORMATS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def layers() -> Counter[tuple[int, int, int, int]]:
    """How often each shape (N, C, H, W) is batch-normalised in one forward of the network."""
    maps = [(64, 112), (64, 56), (192, 56)]
    for side, one, reduce3, three, reduce_double, double, projection in MODULES.values():
        maps += [(c, side) for c in (one, reduce3, three, reduce_double, double, double, projection)]
    for side, reduce3, three, reduce_double, double in STRIDED.values():
        maps += [(reduce3, side), (reduce_double, side), (double, side), (three, side // 2), (double, side // 2)]
    return Counter((BATCH, c, side, side) for c, side in maps)


def contenders(shape: tuple[int, ...], with_compile: bool) -> dict[str, nn.Module]:
    channels = shape[1]

    def torchs() -> nn.Module:
        return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True))

    found = {"torch": torchs(), "ours": bn.BatchNorm2d(channels, activation="relu")}
    if with_compile:
        found["compile"] = torchs()
        found["compile"].compile(dynamic=False)
    return found


def check(name: str, layer: nn.Module, x: Tensor, dz: Tensor) -> None:
    """Raise unless output and input gradient are those of the paper's formulas in float64."""
    z = layer(x)
    (dx,) = torch.autograd.grad(z, x, dz)
    wide, g = x.detach().double(), dz.double()
    axes = (0, 2, 3)
    var, mean = torch.var_mean(wide, axes, correction=0, keepdim=True)
    rstd = (var + 1e-5).rsqrt()
    x_hat = (wide - mean) * rstd
    g = torch.where(x_hat > 0, g, 0)
    want = rstd * (g - g.mean(axes, keepdim=True) - x_hat * (g * x_hat).mean(axes, keepdim=True))
    # Away from the kink; torch's own channels-last statistics are good to about 1e-3 at these sizes.
    tolerance = 1e-2 if x.dtype == torch.float32 else 4e-2
    off = (z - x_hat.clamp(min=0)).abs().max() / 5, ((dx - want).abs() * (x_hat.abs() > 1e-2)).max() / 5
    if max(off) > tolerance:
        raise SystemExit(f"{name} is wrong at {tuple(x.shape)}: {[float(o) for o in off]}")


def measure(shape: tuple[int, ...], layout: str, dtype: torch.dtype, rounds: int, with_compile: bool) -> list[dict]:
    """Milliseconds of every round, of each contender's forward, backward and inference, and of a copy of x."""
    x, dz = (torch.randn(shape, dtype=dtype).contiguous(memory_format=FORMATS[layout]) for _ in range(2))
    x.requires_grad_()
    copy = torch.empty_like(x.detach())
    found = contenders(shape, with_compile)
    rows: dict[str, dict[str, list[float]]] = {name: {"forward": [], "backward": [], "inference": []} for name in found}
    for name, layer in found.items():
        check(name, layer, x, dz)
    copies: list[float] = []
    for round_ in range(rounds + 1):
        for name, layer in found.items():
            times = run(layer, x, dz, inference=name != "compile")
            if round_:  # the first warms up
                for phase, taken in times.items():
                    rows[name][phase].append(taken)
        start = time.perf_counter()
        copy.copy_(x.detach())
        copies.append((time.perf_counter() - start) * 1e3)
    rows["copy"] = {"forward": copies[1:]}
    size = x.numel() * x.element_size()
    return [{"shape": shape, "bytes": size, "contender": name, **times} for name, times in rows.items()]


def run(layer: nn.Module, x: Tensor, dz: Tensor, inference: bool) -> dict[str, float]:
    parameters = list(layer.parameters())
    start = time.perf_counter()
    z = layer(x)
    forward = time.perf_counter()
    torch.autograd.grad(z, [x, *parameters], dz)
    backward = time.perf_counter()
    times = {"forward": (forward - start) * 1e3, "backward": (backward - forward) * 1e3}
    if inference:
        layer.eval()
        with torch.no_grad():
            start = time.perf_counter()
            layer(x)
            times["inference"] = (time.perf_counter() - start) * 1e3
        layer.train()
    return times


PASSES = {"NCHW": 5, "NHWC": 8}  # over the tensor, forward and backward: the fewest that the layout allows


def summarise(rows: list[dict], counts: Counter, layout: str) -> dict:
    """Sums over the 69 layers of the medians, in ms; the worst shape against torch; large tensors against a copy."""
    found = {(row["contender"], tuple(row["shape"])): row for row in rows}

    def took(contender: str, shape: tuple[int, ...], *phases: str) -> float:
        row = found[contender, shape]
        return statistics.median(sum(times) for times in zip(*(row[p] for p in phases), strict=True))

    def total(contender: str, *phases: str) -> float:
        return sum(took(contender, shape, *phases) * times for shape, times in counts.items())

    step = ("forward", "backward")
    names = dict.fromkeys(row["contender"] for row in rows if row["contender"] != "copy")
    training = {s: took("torch", s, *step) / took("ours", s, *step) for s in counts}
    inference = {s: took("torch", s, "inference") / took("ours", s, "inference") for s in counts}
    milliseconds = {name: total(name, *step) for name in names} | {"copy": total("copy", "forward")}
    return {
        "ms": milliseconds,
        "spread_ms": {name: spread(found, counts, name) for name in names},
        "times_torch": milliseconds["torch"] / milliseconds["ours"],
        "times_compile": milliseconds["compile"] / milliseconds["ours"] if "compile" in names else None,
        "least_times_torch": min(training.values()),
        "least_at": min(training, key=lambda s: training[s]),
        "inference_times_torch": total("torch", "inference") / total("ours", "inference"),
        "inference_least": min(inference.values()),
        "inference_least_at": min(inference, key=lambda s: inference[s]),
        "copy_bandwidth_share": {
            "x".join(map(str, s)): PASSES[layout] / 2 * took("copy", s, "forward") / took("ours", s, *step)
            for s in counts
            if found["ours", s]["bytes"] > 32 << 20
        },
    }


def spread(found: dict, counts: Counter, name: str) -> tuple[float, float]:
    """10th and 90th percentile of the sums over the layers that the rounds gave."""
    rows = [(found[name, shape], times) for shape, times in counts.items()]
    rounds = zip(
        *([times * (f + b) for f, b in zip(r["forward"], r["backward"], strict=True)] for r, times in rows), strict=True
    )
    tenths = statistics.quantiles(map(sum, rounds), n=10, method="inclusive")
    return tenths[0], tenths[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layout", choices=FORMATS, required=True)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile as a third contender (minutes to compile)"
    )
    parser.add_argument("--out", type=Path, help="where to write the JSON")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    kept = bn.keep_memory()
    counts = layers()
    rows = []
    for shape in counts:
        torch._dynamo.reset()
        rows += measure(shape, args.layout, DTYPES[args.dtype], args.rounds, args.compile)
    for row in rows:
        row["layout"] = args.layout
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    cpu = next(
        (line.split(":")[1].strip() for line in cpu_lines() if line.startswith("model name")), platform.machine()
    )
    summary = summarise(rows, counts, args.layout)
    print(json.dumps(summary, indent=1, default=str))
    record = {
        **{name: str(value) for name, value in vars(args).items() if name != "out"},
        "layers": sum(counts.values()),
        "kernels": bn.kernels.kernels_available() and bn.kernels._kernels.target(),
        "date": time.strftime("%Y-%m-%d"),
        "malloc": "M_MMAP_MAX=0, M_TRIM_THRESHOLD=-1, M_TOP_PAD=64M for all contenders" if kept else "default",
        "torch": torch.__version__,
        "cpu": cpu,
        "commit": commit,
        "summary": {k: str(v) if isinstance(v, tuple) else v for k, v in summary.items()},
        "rows": [{k: [round(t, 4) for t in v] if isinstance(v, list) else v for k, v in r.items()} for r in rows],
    }
    if args.out:
        args.out.write_text(json.dumps(record) + "\n")


def cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    main()
