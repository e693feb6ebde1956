"""Draw what each part of the recipe gives, with error bars, from records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter, StrMethodFormatter

from ..inception.comparison import Record
from ..inception.variants import BN_BASELINE, BN_X5
from .pictures import save_picture
from .recipe_table import Line, study_lines
from .styles import VARIANT_STYLES

MARKS = {BN_BASELINE.name: "o", BN_X5.name: "s"}  # so that the halves differ without color


def recipe_figure(records: Sequence[Record], folder: Path) -> list[Path]:
    """Draw the best top-1 of each variant, and its steps to the plain network's best.

    A mark is the mean over seeds, a bar one standard deviation, and a faint dot one seed. A dashed line is the base.
    """
    lines = study_lines(records)
    figure = Figure(figsize=(10, 0.36 * len(lines) + 1.4), layout="constrained")
    best, steps = figure.subplots(1, 2, sharey=True)
    _plot(best, lines, lambda line: line.best)
    _plot(steps, lines, lambda line: line.steps)
    level = next((line.level for line in lines if line.level is not None), None)
    best.set(xlabel="best top-1 on the validation images")
    best.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    steps.set(xlabel="training steps to the plain network's best" + (f", {level:.1%}" if level is not None else ""))
    steps.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    steps.set_xlim(left=0)
    best.set_yticks(range(len(lines)), [line.label for line in lines])
    best.set_ylim(len(lines) - 0.5, -0.5)
    figure.suptitle("Mark: mean over seeds. Bar: one standard deviation. Dot: a seed. Dashed: the base.", size="small")
    return save_picture(figure, folder, "recipe")


def _plot(axes: Axes, lines: Sequence[Line], values_of: Callable[[Line], Sequence[float]]) -> None:
    """Plot the values of each line at its number, counted from the top."""
    for y, line in enumerate(lines):
        values, color = values_of(line), VARIANT_STYLES[line.base].color
        if not values:
            axes.annotate("never reached", (0, y), xytext=(4, 0), textcoords="offset points", va="center", color=color)
            continue
        spread = stdev(values) if len(values) > 1 else 0.0
        axes.errorbar(mean(values), y, xerr=spread, fmt=MARKS[line.base], color=color, capsize=4, ms=7)
        axes.plot(values, [y] * len(values), ".", color=color, alpha=0.45)
        if len(values) < len(line.members):
            note = f"{len(values)} of {len(line.members)} seeds"
            axes.annotate(note, (0, y), xytext=(4, 0), textcoords="offset points", va="center", color=color)
        if line.name == line.base:
            axes.axvline(mean(values), ls="--", lw=1, color=color, zorder=0)
    axes.grid(axis="x", alpha=0.25)
