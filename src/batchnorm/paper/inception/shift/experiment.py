"""Look at why BN helps: train the plain network and BN-baseline side by side, and measure both at the same steps.

The paper explains BN by internal covariate shift: "the change in the distribution of network activations due to the
change in network parameters during training" (Sec. 2). The two networks differ in BN alone. They have the same seeds,
and so the same mini-batches, and the same constant learning rate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from math import isfinite, log
from pathlib import Path
from statistics import mean
from threading import Event
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...images.interface import Images
from ...images.loader import evaluation_batches
from ...images.normalize import normalize
from ...training.processes import ALONE
from ...training.rows import Row, append_row, read_rows, write_rows
from ...training.run import Run
from ...training.settings import check_settings, digest
from ..config import InceptionConfig
from ..presets import PRESETS, with_small_network
from ..settled import Settled, settled
from ..trainer import Trainer, build_network
from ..variants import BN_BASELINE, INCEPTION
from .config import LAST_LOSSES, ShiftConfig
from .measures import Observed, buffers_kept, dead_share, drift, find_layers, largest_stable_rate, observe
from .records import DRIFTS, EXPERIMENT, KINDS, RATES, TRAININGS

NETWORKS = {variant.name: variant for variant in (INCEPTION, BN_BASELINE)}
PROBE_IMAGES = 256
NO_DECAY = 1e9  # epochs
DOUBLINGS = 30  # of the learning rate at most


def create_run(config: ShiftConfig, images: Images, out: Path | None) -> Run:
    """Create the run folder, with the settings and the names of the layers.

    Raises:
        BatchNormError: a setting is out of bounds, or the folder is not empty.
        StorageError: it cannot be written.
    """
    model = build_network(settle(config), INCEPTION, len(images.classes), images.channels)
    data = config.data if config.data in PRESETS else str(Path(config.data).resolve())
    saved = asdict(config) | {"data": data, "layers": [layer.name for layer in find_layers(model)]}
    return Run.create(out, EXPERIMENT, saved, digest(config, EXPERIMENT))


def settle(config: ShiftConfig) -> Settled:
    """Return the settings of the networks and their training, for the first seed.

    Raises:
        BatchNormError: a setting is out of bounds.
    """
    check_settings(config)
    given = InceptionConfig(
        config.data, steps=config.steps, lr=config.lr, decay_every=NO_DECAY, seed=config.seed, workers=0
    )
    return settled(given if config.data in PRESETS else with_small_network(given), INCEPTION)


class Look:
    """The measurements of one network with one seed."""

    def __init__(self, config: ShiftConfig, images: tuple[Images, Images], seed: int, network: str) -> None:
        self.config, self.images, self.seed, self.network = config, images, seed, network
        self.label = {"seed": seed, "network": network}
        self.settings = replace(settle(config), seed=seed)

    def drifts(self, stop: Event) -> Iterator[tuple[str, Row]]:
        """Train, and yield the rows of the drift, and of the layers' stable rates at the start, half and end.

        The drift at step t is that over the step from t - 1 to t.
        """
        trainer, probe, every = self._trainer(), self._probe(), self.config.every
        rated = {0, self.config.steps // 2, self.config.steps}
        for step in range(self.config.steps + 1):
            if stop.is_set():
                return
            if step in rated:
                yield RATES, {**self.label, "step": step, "rates": layer_rates(trainer, step)}
            if step == self.config.steps:
                return
            due = (step + 1) % every == 0
            before = observe(trainer.model, probe) if due else None
            loss = trainer.update(step).item()
            if not isfinite(loss):
                yield DRIFTS, {**self.label, "step": step + 1, "loss": None, "mean": [], "spread": [], "dead": []}
                return
            if before is not None:
                after = observe(trainer.model, probe)
                yield DRIFTS, {**self.label, "step": step + 1, "loss": loss, **drift_columns(before, after)}

    def trainings(self, stop: Event) -> Iterator[tuple[str, Row]]:
        """Yield a row for each learning rate: the config's, twice that, and so on, up to the first unstable one.

        A training is stable if its last losses are finite and below that of a guess, in the mean.
        """
        for rate in (self.settings.lr * 2**doubling for doubling in range(DOUBLINGS)):
            trainer, losses = self._trainer(rate), []
            for step in range(self.config.rate_steps):
                if stop.is_set():
                    return
                losses.append(trainer.update(step).item())
                if not isfinite(losses[-1]):
                    break
            last = mean(losses[-LAST_LOSSES:])
            stable = last < log(len(self.images[0].classes))  # False for NaN
            yield TRAININGS, {**self.label, "lr": rate, "loss": last if isfinite(last) else None, "stable": stable}
            if not stable:
                return

    def _trainer(self, rate: float | None = None) -> Trainer:
        settings = self.settings if rate is None else replace(self.settings, lr=rate)
        trainer = Trainer(settings, NETWORKS[self.network], *self.images, ALONE)
        trainer.model.train()
        return trainer

    def _probe(self) -> Tensor:
        """Return the first validation images: (PROBE_IMAGES, C, H, W) at most."""
        batches = evaluation_batches(self.images[1], self.settings.size, 1, PROBE_IMAGES, ALONE, 0)
        return normalize(next(batches).images).contiguous(memory_format=self.settings.memory_format)


def run_shift(
    config: ShiftConfig, images: tuple[Images, Images], run: Run, report: Callable[[Row], None], stop: Event
) -> bool:
    """Measure both networks with every seed, and append each row to the records. Return True if all is measured.

    What the records have already is not measured again; a part that was stopped begins anew.

    Arguments:
        config: the settings.
        images: the images to train on, and those to measure on.
        run: the run folder to write.
        report: called with each new row.
        stop: set it to end at the next step.

    Raises:
        BatchNormError: a line of the records is damaged, or the images cannot be read.
        StorageError: the run folder cannot be written.
    """
    for seed in range(config.seed, config.seed + config.seeds):
        for network in NETWORKS:
            look = Look(config, images, seed, network)
            for part in (
                Part(look.drifts, (DRIFTS, RATES), _drifts_end),
                Part(look.trainings, (TRAININGS,), _trainings_end),
            ):
                _measure_missing(part, look, run, report, stop)
                if stop.is_set():
                    return False
    return True


class Part(NamedTuple):
    """A part of a look: what measures it, the records that it writes, and whether a row is its last one."""

    measure: Callable[[Event], Iterator[tuple[str, Row]]]
    files: tuple[str, ...]
    is_last: Callable[[Row, Settled], bool]


def _measure_missing(part: Part, look: Look, run: Run, report: Callable[[Row], None], stop: Event) -> None:
    """Measure a part, unless the records have its last row. Replace what a stop has left of it."""
    rows = {file: read_rows(run.folder / file, KINDS[file]) for file in part.files}
    own = [row for each in rows.values() for row in each if _is_of(row, look.label)]
    if any(part.is_last(row, look.settings) for row in own):
        return
    for file, each in rows.items():
        write_rows(run.folder / file, [row for row in each if not _is_of(row, look.label)])
    for file, row in part.measure(stop):
        append_row(run.folder / file, row)
        report(row)


def layer_rates(trainer: Trainer, step: int) -> list[float]:
    """Return the largest stable rate of each layer's weight alone, on mini-batch `step`. Dropout stays the same."""
    images, labels = next(trainer.prepared(iter([trainer.batches[step]])))

    def loss() -> Tensor:
        torch.manual_seed(step)
        return nn.functional.cross_entropy(trainer.model(images), labels)

    trainer.model.zero_grad()
    with buffers_kept(trainer.model):
        loss().backward()
        layers = find_layers(trainer.model)
        rates = [largest_stable_rate(layer.convolution.weight, lambda: loss().item()) for layer in layers]
    trainer.model.zero_grad()
    return rates


def drift_columns(before: Observed, after: Observed) -> dict[str, list[float | None]]:
    """Return the columns of a drift row: a value for each layer, with 4 digits."""
    inputs = [drift(*pair) for pair in zip(before.inputs, after.inputs, strict=True)]
    columns = {
        "mean": [each.mean for each in inputs],
        "spread": [each.spread for each in inputs],
        "dead": [dead_share(moments) for moments in after.inputs],
    }
    if any(raw is not entered for raw, entered in zip(after.raw, after.inputs, strict=True)):  # with BN
        raw = [drift(*pair) for pair in zip(before.raw, after.raw, strict=True)]
        columns |= {"raw_mean": [each.mean for each in raw], "raw_spread": [each.spread for each in raw]}
    return {
        name: [float(f"{value:.4g}") if isfinite(value) else None for value in values]
        for name, values in columns.items()
    }


def _is_of(row: Row, label: dict[str, object]) -> bool:
    return all(row[name] == value for name, value in label.items())


def _drifts_end(row: Row, settings: Settled) -> bool:
    """Return True for the last row of a network: the layers' rates at the end, or a loss that is not finite."""
    return row["loss"] is None if "loss" in row else row["step"] == settings.steps


def _trainings_end(row: Row, settings: Settled) -> bool:
    return not row["stable"] or row["lr"] == settings.lr * 2 ** (DOUBLINGS - 1)
