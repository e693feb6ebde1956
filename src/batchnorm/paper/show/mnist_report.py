"""Write the page of Sec. 4.1: Fig. 1, interactive, and the table of steps to accuracy."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import Any

from ...page.html import Section, html_table, write_page
from ..mnist.records import ARMS, LABELS, PERCENTILES, series
from ..training.rows import Row
from .chart import Chart, Curve, Spread, html_charts
from .mnist_figures import accuracy_floor
from .mnist_tables import STEPS_TITLE, steps_table
from .styles import ARM_STYLES, PERCENTILE_DASHES, Style

_ABOUT = """Ioffe and Szegedy, 2015, Sec. 4.1, computed by <code>batchnorm mnist</code>: the same network,
784-100-100-100-10 with sigmoids, with and without batch normalization. Both start from the same weights and train on
the same mini-batches. (b, c): 15th, 50th and 85th percentile, over the test images, of the input of one sigmoid in the
last hidden layer. The test images are normalized by moving averages of the training statistics, never by their own."""


def write_mnist_report(rows: list[Row], settings: dict[str, Any], folder: Path) -> Path:
    """Write `report.html` into `folder` and return its path. The page opens offline.

    Raises:
        StorageError: the disk is full or the folder read-only.
    """
    listed = ", ".join(f"{name} {value}" for name, value in _flat(settings) if value is not None)
    sections = [
        Section("Figure 1: test accuracy, and the input of one sigmoid", html_charts(_charts(rows))),
        Section(STEPS_TITLE, html_table(STEPS_TITLE, steps_table(rows))),
    ]
    return write_page(
        folder / "report.html", "Batch Normalization on MNIST: Figure 1", _ABOUT, sections, f"Settings: {listed}."
    )


def _flat(settings: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield names and values. A setting that holds settings yields those."""
    for name, value in settings.items():
        yield from _flat(value) if isinstance(value, dict) else [(name, value)]


def _charts(rows: list[Row]) -> list[Chart]:
    accuracies = [Curve(LABELS[arm], style, *series(rows, arm, "test_accuracy")) for arm, style in ARM_STYLES.items()]
    percentiles = {arm: _percentiles(rows, arm) for arm in ARMS}
    inputs = _range([value for curves in percentiles.values() for curve in curves for value in curve.values])
    titles = {"plain": "(b) input of a sigmoid, without BN", "bn": "(c) input of a sigmoid, with BN"}
    accuracy = ("share of test images", (accuracy_floor(rows), 1.0), ".0%", ".2%")
    return [
        Chart("(a) test accuracy", *accuracy, accuracies),
        *(
            Chart(title, "value over the test images", inputs, "g", ".4f", percentiles[arm])
            for arm, title in titles.items()
        ),
    ]


def _percentiles(rows: list[Row], arm: str) -> list[Curve]:
    """Return a curve a percentile. The band between the outer two belongs to the median."""
    steps, low = series(rows, arm, "p15")
    high = series(rows, arm, "p85")[1]
    color = ARM_STYLES[arm].color
    return [
        Curve(
            f"{percentile}th percentile",
            Style(color, PERCENTILE_DASHES[percentile]),
            steps,
            series(rows, arm, f"p{percentile}")[1],
            Spread(low, high) if percentile == 50 else None,
        )
        for percentile in PERCENTILES
    ]


def _range(values: list[float]) -> tuple[float, float]:
    """Return where the axis of these values starts and ends: a little below the least and above the largest."""
    finite = [value for value in values if isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin
