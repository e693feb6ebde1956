"""What `batchnorm fold`, `insert` and `recalibrate` do: load, transform, tell, write."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from ..algorithm2.fold import fold
from ..algorithm2.insert import Removable, insert
from ..algorithm2.recalibrate import Estimator, recalibrate
from ..errors import BatchNormError
from ..graph.batches import does_not_run
from .files import check_out, make, make_model, save_network, save_state

ROUNDS = 20


def run_fold(target: str, shape: str, weights: Path | None, out: Path | None, rounds: int = ROUNDS) -> None:
    """Fold a network; print its table, the measured error and latency; write it to `out`."""
    if out is not None:
        check_out(out, (".pt2", ".onnx", ".safetensors"))
    model = make_model(target, weights)
    example = example_for(model, shape)
    result = fold(model, example)
    print(result)
    before, after = latencies([model, result.model], example, rounds)
    print(
        f"latency {before * 1e3:.2f} ms before, {after * 1e3:.2f} ms after "
        f"(median of {rounds}, alternating, {torch.get_num_threads()} threads)"
    )
    _write(out, lambda file: save_network(result.model, example, file))


def run_insert(
    target: str,
    shape: str,
    weights: Path | None,
    out: Path | None,
    where: Sequence[str],
    remove: Sequence[Removable],
    data: str | None,
) -> None:
    """Insert BN; print its table; write the new network's state_dict to `out`.

    `data` is MODULE:FACTORY of the batches to keep the function with.
    """
    if out is not None:
        check_out(out, (".safetensors",))
    model = make_model(target, weights)
    batches = None if data is None else _batches(data)
    result = insert(model, example_for(model, shape), where=where or None, remove=remove, keep_function=batches)
    print(result)
    _write(out, lambda file: save_state(result.model, file))


def run_recalibrate(target: str, data: str, weights: Path | None, out: Path | None, estimator: Estimator) -> None:
    """Re-estimate population statistics on the batches of `data`, MODULE:FACTORY; print; write the state_dict."""
    if out is not None:
        check_out(out, (".safetensors",))
    model = make_model(target, weights)
    print(recalibrate(model, _batches(data), estimator=estimator, progress=True))
    _write(out, lambda file: save_state(model, file))


@torch.no_grad()
def example_for(model: nn.Module, shape: str) -> Tensor:
    """Seeded noise of a shape that is written 1x3x224x224 and that the network takes.

    Raises:
        BatchNormError: another form, or a shape that does not fit.
    """
    sizes = shape.split("x")
    if len(sizes) < 2 or not all(size.isdecimal() and int(size) for size in sizes):
        raise BatchNormError(f"--input wants a shape with its batch axis, such as 1x3x224x224; got {shape!r}")
    example = torch.randn([int(size) for size in sizes], generator=torch.Generator().manual_seed(0))
    try:
        model(example)
    except Exception as error:
        raise does_not_run(model, f"--input {shape}", error) from error
    return example


@torch.no_grad()
def latencies(models: Sequence[nn.Module], example: Tensor, rounds: int) -> list[float]:
    """Median seconds of one call of each model in eval mode; calls alternate, after three rounds of warm-up."""
    seconds: list[list[float]] = [[] for _ in models]
    for turn in range(rounds + 3):
        for model, taken in zip(models, seconds, strict=True):
            started = time.perf_counter()
            model(example)
            if turn >= 3:
                taken.append(time.perf_counter() - started)
    return [median(taken) for taken in seconds]


def _batches(data: str) -> Any:
    batches = make(data)
    if not hasattr(batches, "__iter__"):
        raise BatchNormError(f"{data} gives a {type(batches).__name__}; wanted an iterable of batches")
    return batches


def _write(out: Path | None, save: Callable[[Path], None]) -> None:
    if out is not None:
        save(out)
        print(f"wrote {out}, {out.stat().st_size / 1e6:.1f} MB")
