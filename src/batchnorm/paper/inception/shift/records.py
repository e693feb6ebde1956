"""Declare the records of a look at why BN helps, and read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Annotated, Literal, NamedTuple

from ....errors import BatchNormError
from ...training.bounds import Bounds, Finite, Positive, Seed, Share, Step
from ...training.rows import Row, read_rows
from ...training.run import Run
from ...training.settings import saved_settings
from ...training.validation import shown
from .config import ShiftConfig

EXPERIMENT = "shift"
Network = Literal["inception", "bn-baseline"]
DRIFTS, RATES, TRAININGS = "metrics.jsonl", "rates.jsonl", "trainings.jsonl"


@dataclass(frozen=True)
class DriftFields:
    """The drift over the step that ends at `step`. The lists have a value for each layer, in the network's order.

    `mean` and `spread` are of the inputs of the nonlinearity. With BN, `raw_mean` and `raw_spread` are of BN's inputs.
    """

    seed: Seed
    network: Network
    step: Step
    loss: Finite | None
    mean: tuple[Finite | None, ...]
    spread: tuple[Finite | None, ...]
    dead: tuple[Share, ...]
    raw_mean: tuple[Finite | None, ...] = ()
    raw_spread: tuple[Finite | None, ...] = ()


@dataclass(frozen=True)
class RateFields:
    """The largest stable learning rate of each layer alone, after `step` steps."""

    seed: Seed
    network: Network
    step: Step
    rates: tuple[Annotated[float, Bounds(0.0, 1e30)], ...]


@dataclass(frozen=True)
class TrainingFields:
    """One training at a learning rate, and the mean of its last losses: None if a loss was not finite."""

    seed: Seed
    network: Network
    lr: Positive
    loss: Finite | None
    stable: bool


KINDS = {DRIFTS: DriftFields, RATES: RateFields, TRAININGS: TrainingFields}


class ShiftRecords(NamedTuple):
    """The names of the layers, in the network's order, and the rows of the three files."""

    layers: list[str]
    drifts: list[Row]
    rates: list[Row]
    trainings: list[Row]


class Opened(NamedTuple):
    """An existing run, its settings, and the names of the layers."""

    run: Run
    config: ShiftConfig
    layers: list[str]


def open_shift(folder: Path) -> Opened:
    """Return the run in a folder.

    Raises:
        BatchNormError: it is no run of batchnorm shift, or its settings were edited.
    """
    run, experiment, saved = Run.open(folder)
    if experiment != EXPERIMENT:
        raise BatchNormError(f"{folder} is a run of {experiment!r}; wanted one of batchnorm shift")
    layers = saved.pop("layers", None)
    if not isinstance(layers, list) or not all(isinstance(name, str) for name in layers):
        raise BatchNormError(f"{run.config}: layers must be a list of names; got {shown(layers)}")
    return Opened(run, saved_settings(ShiftConfig, saved, run.config, EXPERIMENT), layers)


def read_shift(folder: Path) -> ShiftRecords:
    """Return what a run has measured.

    Raises:
        BatchNormError: it is no run of batchnorm shift, or a line of its records is damaged.
    """
    return ShiftRecords(open_shift(folder).layers, *(read_rows(folder / file, kind) for file, kind in KINDS.items()))


def layer_medians(rows: Sequence[Row], network: str, column: str) -> list[list[float]]:
    """Return the median over the steps of each layer's value: a list a layer, with an entry a seed."""
    return _by_layer(
        [
            [median(values) if (values := _finite(each)) else float("nan") for each in zip(*lists, strict=True)]
            for lists in _by_seed(rows, network, column)
        ]
    )


def last_values(rows: Sequence[Row], network: str, column: str) -> list[list[float]]:
    """Return each layer's value at the last step of each seed: a list a layer, with an entry a seed."""
    return _by_layer([lists[-1] for lists in _by_seed(rows, network, column)])


def stable_rates(rows: Sequence[Row], network: str) -> list[float]:
    """Return the largest stable learning rate of the whole network for each seed, or 0 if none was stable."""
    own = [row for row in rows if row["network"] == network]
    seeds = sorted({row["seed"] for row in own})
    return [max((r["lr"] for r in own if r["seed"] == seed and r["stable"]), default=0.0) for seed in seeds]


def _by_seed(rows: Sequence[Row], network: str, column: str) -> list[list[Sequence[float | None]]]:
    """Return the lists of a column in the order of the steps, for each seed. Leave out rows of a divergence."""
    own = sorted((r for r in rows if r["network"] == network and r[column]), key=lambda r: (r["seed"], r["step"]))
    return [[row[column] for row in group] for _, group in groupby(own, key=lambda row: row["seed"])]


def _by_layer(seeds: Sequence[Sequence[float | None]]) -> list[list[float]]:
    return [[float("nan") if value is None else value for value in values] for values in zip(*seeds, strict=True)]


def _finite(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None and isfinite(value)]
