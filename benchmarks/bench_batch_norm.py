"""Time BN + ReLU of the 69 layers of BN-Inception at batch 32 (Fig. 5): torch eager, torch.compile and our kernels.

`--then` puts SiLU, Hardswish, or the sum with a residual and ReLU behind each BN, in place of ReLU.

Every contender is checked against float64 before the clock starts. A round has three turns, and each round starts with
another one:

- torch trains all 69 layers in the order of the figure, then runs their inference;
- our layers do the same;
- the input of every layer is copied, to measure the bandwidth.

The contenders alternate network by network. A layer right after another contender would wait for that contender's
outputs to be written back.

The result is the median of the rounds. The spread is from the 10th to the 90th percentile of the sums of the rounds.
The record holds every round. Other users of a shared machine use its last-level cache too. So it also holds the ratios
of the rounds with fast copies, and of those with slow ones.

torch.compile runs after that, shape by shape and warmed up, because it keeps few compiled programs at a time.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import torch
from machine import described
from torch import Tensor, nn

import batchnorm as bn
from batchnorm.kernels.activation import Activation

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

AXES = (0, 2, 3)
# Largest errors, relative to the largest value. float32: a few roundings, and more for torch's channels-last sums.
ROUNDING = {"ours": 1e-6, "torch": 1e-4, "compile": 1e-4}
HALF_A_UNIT = 2**-8  # bfloat16: half a unit in the last of its 8 bits

FOLLOWERS: dict[str, tuple[type[nn.Module], Activation]] = {
    "relu": (nn.ReLU, "relu"),
    "silu": (nn.SiLU, "silu"),
    "hardswish": (nn.Hardswish, "hardswish"),
    "residual": (nn.ReLU, "relu"),
}
KINKS = (-3, 0, 3)  # of ReLU and Hardswish

Shape = tuple[int, int, int, int]
Times = dict[str, list[float]]  # phase: ms of each layer of one shape, round by round


class Tensors(NamedTuple):
    """The input of a layer, the gradient of its output, and the residual or None, all of one shape."""

    x: Tensor
    dz: Tensor
    residual: Tensor | None

    def inputs(self, layer: nn.Module) -> list[Tensor]:
        """Return the tensors that get a gradient: x, gamma, beta, and the residual if there is one."""
        return [self.x, *layer.parameters(), *([] if self.residual is None else [self.residual])]


class Torchs(nn.Module):
    """Torch's layer and what follows it, in place where that is faster."""

    def __init__(self, channels: int, then: str) -> None:
        super().__init__()
        act, _ = FOLLOWERS[then]
        self.norm, self.act = with_any_affine(nn.BatchNorm2d(channels)), act(inplace=act is nn.ReLU)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return z = g(BN(x) + residual)."""
        y = self.norm(x)
        if residual is not None:
            y += residual
        return self.act(y)


def layers() -> list[Shape]:
    """Return the shapes (N, C, H, W) that one forward of the network batch-normalizes, in its order."""
    maps = [(64, 112), (64, 56), (192, 56)]
    for side, one, reduce3, three, reduce_double, double, projection in MODULES.values():
        maps += [(c, side) for c in (one, reduce3, three, reduce_double, double, double, projection)]
    for side, reduce3, three, reduce_double, double in STRIDED.values():
        maps += [(reduce3, side), (reduce_double, side), (double, side), (three, side // 2), (double, side // 2)]
    return [(BATCH, c, side, side) for c, side in maps]


def ours(channels: int, then: str) -> nn.Module:
    return with_any_affine(bn.BatchNorm2d(channels, activation=FOLLOWERS[then][1]))


def with_any_affine(layer: nn.BatchNorm2d) -> nn.Module:
    """Return a gamma and beta that no contender may leave out."""
    nn.init.uniform_(layer.weight, 0.5, 1.5)
    nn.init.uniform_(layer.bias, -0.5, 0.5)
    return layer


def check(name: str, layer: nn.Module, tensors: Tensors, then: str) -> None:
    """Exit unless output, gradients and inference of a new layer match the paper's formulas in float64."""
    x, dz, residual = tensors
    wide = x.detach().double()
    gamma, beta = (p.detach().double()[:, None, None] for p in layer.parameters())
    added = 0 if residual is None else residual.detach().double()
    var, mean = torch.var_mean(wide, AXES, correction=0, keepdim=True)
    rstd = (var + 1e-5).rsqrt()
    x_hat = (wide - mean) * rstd
    y = (x_hat * gamma + beta + added).requires_grad_()
    for kink in KINKS:
        dz = torch.where((y - kink).abs() < 1e-2, 0, dz)  # no gradient where rounding decides the side of the kink
    act = FOLLOWERS[then][0]()
    wanted_z = act(y)
    (dy,) = torch.autograd.grad(wanted_z, y, dz.double())
    z = layer(x, residual)
    gradients_of = torch.autograd.grad(z, tensors.inputs(layer), dz)
    found = dict(zip(("dx", "dgamma", "dbeta", "dresidual"), gradients_of, strict=False))
    with torch.no_grad():
        found |= {"z": z.detach(), "inference": layer.eval()(x, residual)}
    layer.train()
    count = x.numel() // x.size(1)
    running_mean, running_var = 0.1 * mean, 0.9 + 0.1 * var * count / (count - 1)
    inferred = (wide - running_mean) * (running_var + 1e-5).rsqrt() * gamma + beta + added
    want = {"z": wanted_z.detach(), "inference": act(inferred), "dresidual": dy} | gradients(dy, x_hat, gamma * rstd)
    for what, value in found.items():
        off = float((value - want[what]).abs().max() / want[what].abs().max())
        if not off <= (HALF_A_UNIT if value.dtype == torch.bfloat16 else ROUNDING[name]):
            raise SystemExit(f"{name}: {what} of {tuple(x.shape)} is off by {off:.1e} of its largest value")


def gradients(dy: Tensor, x_hat: Tensor, scale: Tensor) -> dict[str, Tensor]:
    dx = scale * (dy - dy.mean(AXES, True) - x_hat * (dy * x_hat).mean(AXES, True))
    return {"dx": dx, "dgamma": (dy * x_hat).sum(AXES), "dbeta": dy.sum(AXES)}


def measure(tensors: dict[Shape, Tensors], order: list[Shape], rounds: int, then: str) -> dict[str, dict[Shape, Times]]:
    """Return the times of torch and ours by shape, and ("forward") those of a copy of x."""
    networks = {name: {s: make(s[1], then) for s in tensors} for name, make in (("torch", Torchs), ("ours", ours))}
    copies = {shape: torch.empty_like(of_shape.x.detach()) for shape, of_shape in tensors.items()}
    found: dict[str, dict[Shape, Times]] = {
        name: {s: defaultdict(list) for s in tensors} for name in (*networks, "copy")
    }
    for name, network in networks.items():
        for shape, layer in network.items():
            check(name, layer, tensors[shape], then)
    for round_ in range(rounds + 1):
        if round_ == 1:  # the first round was the warm-up
            for of_shape in found.values():
                for times in of_shape.values():
                    times.clear()
        for name in rotated(list(found), round_):
            if name == "copy":
                for shape in order:
                    copy(copies[shape], tensors[shape].x, found[name][shape])
                continue
            for shape in order:
                train(networks[name][shape], tensors[shape], found[name][shape])
            for shape in order:
                infer(networks[name][shape], tensors[shape], found[name][shape])
    return found


def rotated(names: list[str], by: int) -> list[str]:
    first = by % len(names)
    return names[first:] + names[:first]


def measure_compiled(tensors: Tensors, rounds: int, then: str) -> Times:
    torch._dynamo.reset()
    layer, times = Torchs(tensors.x.size(1), then), defaultdict(list)
    layer.compile(dynamic=False)
    check("compile", layer, tensors, then)
    train(layer, tensors, {"forward": [], "backward": []})
    for _ in range(rounds):
        train(layer, tensors, times)
    return times


def train(layer: nn.Module, tensors: Tensors, times: Times) -> None:
    inputs = tensors.inputs(layer)
    start = time.perf_counter()
    z = layer(tensors.x, tensors.residual)
    times["forward"].append(since(start))
    start = time.perf_counter()
    torch.autograd.grad(z, inputs, tensors.dz)
    times["backward"].append(since(start))


@torch.no_grad()
def infer(layer: nn.Module, tensors: Tensors, times: Times) -> None:
    layer.eval()
    start = time.perf_counter()
    layer(tensors.x, tensors.residual)
    times["inference"].append(since(start))
    layer.train()


def copy(to: Tensor, x: Tensor, times: Times) -> None:
    start = time.perf_counter()
    to.copy_(x.detach())
    times["forward"].append(since(start))


def since(start: float) -> float:
    return (time.perf_counter() - start) * 1e3


PASSES = {"NCHW": 5, "NHWC": 8}  # over the tensor, forward and backward: the least that the layout allows
OF_RESIDUAL = {"NCHW": 3, "NHWC": 4}  # passes more: it is read with x, and its gradient is written


def summarize(found: dict[str, dict[Shape, Times]], order: list[Shape], passes: int, element: int) -> dict:
    """Sum the medians over the 69 layers, in ms; compare the worst shape to torch, large tensors to a copy."""

    def took(contender: str, shape: Shape, *phases: str) -> float:
        times = found[contender][shape]
        return statistics.median(map(sum, zip(*(times[p] for p in phases), strict=True)))

    def total(contender: str, *phases: str) -> float:
        return sum(took(contender, shape, *phases) for shape in order)

    step = ("forward", "backward")
    names = [name for name in found if name != "copy"]
    training = {s: took("torch", s, *step) / took("ours", s, *step) for s in order}
    inference = {s: took("torch", s, "inference") / took("ours", s, "inference") for s in order}
    milliseconds = {name: total(name, *step) for name in names} | {"copy": total("copy", "forward")}
    sums = {name: round_sums(found[name], order, *step) for name in ("torch", "ours")}
    ratios = [theirs / own for theirs, own in zip(*sums.values(), strict=True)]
    return {
        "ms": milliseconds,
        "spread_ms": {name: spread(taken) for name, taken in sums.items()},
        "times_torch": milliseconds["torch"] / milliseconds["ours"],
        "times_torch_in_rounds_with": by_neighbors(ratios, round_sums(found["copy"], order, "forward")),
        "times_compile": milliseconds["compile"] / milliseconds["ours"] if "compile" in found else None,
        "least_times_torch": min(training.values()),
        "least_at": min(training, key=lambda s: training[s]),
        "inference_times_torch": total("torch", "inference") / total("ours", "inference"),
        "inference_least": min(inference.values()),
        "inference_least_at": min(inference, key=lambda s: inference[s]),
        "copy_bandwidth_share": {
            "x".join(map(str, s)): passes / 2 * took("copy", s, "forward") / took("ours", s, *step)
            for s in training
            if math.prod(s) * element > 32 << 20
        },
    }


def round_sums(of_shape: dict[Shape, Times], order: list[Shape], *phases: str) -> list[float]:
    """Return the sum over the layers for each round."""
    often = Counter(order)
    sums: dict[int, float] = defaultdict(float)
    for shape, times in of_shape.items():
        for i, taken in enumerate(map(sum, zip(*(times[p] for p in phases), strict=True))):
            sums[i // often[shape]] += taken
    return list(sums.values())


def spread(values: list[float]) -> tuple[float, float]:
    """Return the 10th and the 90th percentile."""
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return tenths[0], tenths[-1]


def by_neighbors(ratios: list[float], copies: list[float]) -> dict[str, float]:
    """Return the median ratio in the quarter of rounds with the fastest copies, and with the slowest.

    On a shared machine the last-level cache is shared too: how fast torch copies tells how much of it was left.
    """
    ranked = [ratio for _, ratio in sorted(zip(copies, ratios, strict=True))]
    quarter = max(1, len(ranked) // 4)
    return {"fast_copies": statistics.median(ranked[:quarter]), "slow_copies": statistics.median(ranked[-quarter:])}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layout", choices=FORMATS, required=True)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--then", choices=FOLLOWERS, default="relu", help="what follows BN")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=61)
    parser.add_argument("--compile", action="store_true", help="time torch.compile too; compiling takes minutes")
    parser.add_argument("--out", type=Path, help="where to write the JSON")
    return parser.parse_args()


def main() -> None:
    args = options()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    kept = bn.keep_memory()
    order, dtype = layers(), DTYPES[args.dtype]
    tensors: dict[Shape, Tensors] = {}
    adds = args.then == "residual"
    for shape in dict.fromkeys(order):
        x, dz, *residual = (
            torch.randn(shape, dtype=dtype).contiguous(memory_format=FORMATS[args.layout]) for _ in range(2 + adds)
        )
        tensors[shape] = Tensors(x.requires_grad_(), dz, residual[0].requires_grad_() if adds else None)
    found = measure(tensors, order, args.rounds, args.then)
    if args.compile:
        found["compile"] = {s: measure_compiled(of_shape, args.rounds, args.then) for s, of_shape in tensors.items()}
    passes = PASSES[args.layout] + (OF_RESIDUAL[args.layout] if adds else 0)
    summary = summarize(found, order, passes, dtype.itemsize)
    print(json.dumps(summary, indent=1))
    if args.out:
        settings = {name: str(value) for name, value in vars(args).items() if name != "out"}
        record = {
            **settings,
            "layers": order,
            **described(kept),
            "summary": summary,
            "ms": rounded(found),
        }
        args.out.write_text(json.dumps(record) + "\n")


def rounded(found: dict[str, dict[Shape, Times]]) -> dict:
    """Round every time to a tenth of a microsecond."""
    return {
        name: {
            "x".join(map(str, s)): {phase: [round(t, 4) for t in taken] for phase, taken in times.items()}
            for s, times in of_shape.items()
        }
        for name, of_shape in found.items()
    }


if __name__ == "__main__":
    main()
