"""Draw Fig. 2 for the network of a trial."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from ..show.pictures import save_picture
from ..show.styles import CONTENDER_STYLES, MARKERS
from ..training.rows import Row
from .bands import Band, bands, score_range
from .config import TrialSettings
from .records import Contender

FIGURE = "figure2"


def trial_figure(rows: Sequence[Row], settings: TrialSettings, level: float | None, folder: Path) -> list[Path]:
    """Draw the score against steps: a contender's mean over seeds, in a band from worst to best seed.

    Raises:
        StorageError: the disk is full or the folder read-only.
    """
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.subplots()
    low, high = score_range(rows, settings)
    for contender, band in bands(rows, settings).items():
        _plot(axes, contender, band, low)
    if level is not None:
        axes.axhline(level, color="0.5", lw=0.8, zorder=0, label="the plain network's best")
    name = f"{settings.score} on the held-out batches"
    axes.set(xlabel="training steps", ylabel=name, xlim=(0, settings.steps), ylim=(low, high))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if settings.score == "accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return save_picture(figure, folder, FIGURE)


def _plot(axes: Axes, contender: Contender, band: Band, low: float) -> None:
    style = CONTENDER_STYLES[contender.arm, contender.times]
    marks = {"marker": style.marker, "markevery": -(-len(band.steps) // MARKERS)} if style.marker else {}
    axes.plot(band.steps, band.mean, style.dash, color=style.color, lw=1.8, label=contender.label, **marks)
    axes.fill_between(band.steps, band.low, band.high, color=style.color, alpha=0.15, lw=0)
    if band.diverged is not None:
        axes.plot(band.diverged, low, "x", color=style.color, clip_on=False, label=f"{contender.label}: diverged")
