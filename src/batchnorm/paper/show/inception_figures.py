"""Draw Fig. 2 from records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from ..inception.comparison import Record, band, by_variant, without_parts
from .pictures import save_picture
from .styles import MARKERS, VARIANT_STYLES


def figure2(records: Sequence[Record], folder: Path) -> list[Path]:
    """Draw Fig. 2: top-1 against steps. A line is a variant's mean over seeds, in a band from worst to best seed."""
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.subplots()
    for name, members in by_variant(without_parts(records)).items():
        _plot_variant(axes, name, members)
    axes.set(xlabel="training steps", ylabel="top-1 on the validation images", xlim=(0, None), ylim=(0, 1))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(alpha=0.25)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    # Inside the axes the legend would hide curves that stay at chance.
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return save_picture(figure, folder, "figure2")


def _plot_variant(axes: Axes, name: str, members: Sequence[Record]) -> None:
    style = VARIANT_STYLES[name]
    steps, low, middle, high = band(members)
    marks = {"marker": style.marker, "markevery": -(-len(steps) // MARKERS)} if style.marker else {}
    axes.plot(steps, middle, style.dash, color=style.color, lw=1.8, label=name, **marks)
    axes.fill_between(steps, low, high, color=style.color, alpha=0.15, lw=0)
    ends = [record.diverged for record in members if record.diverged is not None]
    if ends:
        axes.plot(min(ends), 0, "x", color=style.color, clip_on=False, label=f"{name} diverged")
