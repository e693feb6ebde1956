"""Draw what BN changes in each layer: drift, dead feature maps and stable learning rates, from records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ..inception.shift.records import ShiftRecords, last_values, layer_medians, stable_rates
from .pictures import save_picture
from .styles import VARIANT_STYLES, Style

LABELS = {"inception": "without BN", "bn-baseline": "with BN"}
BEFORE = "with BN, before it"
STYLES = {
    LABELS["inception"]: VARIANT_STYLES["inception"],
    LABELS["bn-baseline"]: VARIANT_STYLES["bn-x5"],
    BEFORE: Style("#D55E00", ":", "^"),
}


def shift_figure(records: ShiftRecords, folder: Path) -> list[Path]:
    """Draw four panels over the layers: the drift of mean and spread, dead feature maps, and stable learning rates.

    A line is the mean over seeds, in a band from the least to the largest. It is written as shift.png and shift.svg.
    """
    figure = Figure(figsize=(13, 8.5), layout="constrained")
    (means, spreads), (dead, rates) = figure.subplots(2, 2, sharex=True)
    for axes, column in ((means, "mean"), (spreads, "spread")):
        for network, label in LABELS.items():
            _plot(axes, label, layer_medians(records.drifts, network, column))
        _plot(axes, BEFORE, layer_medians(records.drifts, "bn-baseline", f"raw_{column}"))
        axes.set(title=f"Drift of the {column} of a nonlinearity's inputs in one step", yscale="log")
        axes.set_ylabel("standard deviations, median over the steps")
    for network, label in LABELS.items():
        _plot(dead, label, last_values(records.drifts, network, "dead"))
        _plot(rates, label, last_values(records.rates, network, "rates"))
        whole = mean(stable_rates(records.trainings, network) or [float("nan")])
        style = STYLES[label]
        rates.axhline(whole, color=style.color, ls=style.dash, lw=0.8, alpha=0.7)
        side, place = ("left", 0) if network == "inception" else ("right", 1)  # so that they never overlap
        rates.annotate(
            f"whole network {label}",
            (place, whole),
            xycoords=rates.get_yaxis_transform(),
            ha=side,
            xytext=(0, 3),
            textcoords="offset points",
            fontsize=8,
        )
    dead.set(title="Dead feature maps at the end", ylabel="share of a layer's feature maps", ylim=(-0.02, 1))
    dead.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    rates.set(
        title="Largest stable learning rate of each layer alone, at the end",
        ylabel="learning rate",
    )
    rates.set_yscale("log", base=2)
    for axes in (means, spreads, dead, rates):
        axes.set_xticks(range(len(records.layers)), records.layers, rotation=90)
        axes.grid(alpha=0.25)
    figure.legend(*means.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return save_picture(figure, folder, "shift")


def _plot(axes: Axes, label: str, layers: Sequence[Sequence[float]]) -> None:
    """Plot the mean over seeds of each layer's values, and a band from the least to the largest."""
    style, numbers = STYLES[label], range(len(layers))
    marker = style.marker or "o"
    middle = [mean(values) for values in layers]
    axes.plot(numbers, middle, style.dash, marker=marker, ms=3.5, color=style.color, label=label)
    low, high = ([pick(values) for values in layers] for pick in (min, max))
    axes.fill_between(numbers, low, high, color=style.color, alpha=0.15, lw=0)
