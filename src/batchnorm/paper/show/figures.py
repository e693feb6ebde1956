"""The paper's figures on paper: PNG and SVG, drawn from records alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from ..inception.comparison import Record, band, by_variant
from ..mnist.experiment import LABELS
from ..mnist.measure import PERCENTILES
from ..mnist.sweep import grid_means
from ..training.rows import Row

# Okabe and Ito's colours, told apart by colour-blind readers too; line styles say the same again. The ensemble's are
# Paul Tol's "muted", and markers say it again.
STYLES = {
    "plain": {"label": LABELS["plain"], "color": "#D55E00", "dash": "--"},
    "bn": {"label": LABELS["bn"], "color": "#0072B2", "dash": "-"},
}
VARIANT_STYLES = {
    "inception": {"color": "#000000", "dash": "--"},
    "bn-baseline": {"color": "#E69F00", "dash": ":"},
    "bn-x5": {"color": "#0072B2", "dash": "-."},
    "bn-x30": {"color": "#D55E00", "dash": "-"},
    "bn-x5-sigmoid": {"color": "#009E73", "dash": "-"},
    "inception-x5": {"color": "#56B4E9", "dash": "--"},
    "inception-sigmoid": {"color": "#CC79A7", "dash": ":"},
    "ensemble-1": {"color": "#332288", "dash": "-", "marker": "o"},
    "ensemble-2": {"color": "#CC6677", "dash": "-", "marker": "s"},
    "ensemble-3": {"color": "#117733", "dash": "-", "marker": "^"},
    "ensemble-4": {"color": "#88CCEE", "dash": "-", "marker": "v"},
    "ensemble-5": {"color": "#882255", "dash": "-", "marker": "D"},
    "ensemble-6": {"color": "#999933", "dash": "-", "marker": "X"},
}
MARKERS = 8  # on a line, at most


def figure1(rows: list[Row], folder: Path) -> list[Path]:
    """Fig. 1: (a) test accuracy of both arms, (b, c) the input of one sigmoid without and with BN."""
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    accuracy, plain, bn = figure.subplots(1, 3)
    for arm, style in STYLES.items():
        accuracy.plot(*series(rows, arm, "test_accuracy"), style["dash"], color=style["color"], label=style["label"])
    accuracy.set(title="(a) test accuracy", ylabel="fraction of test images", ylim=(accuracy_floor(rows), 1.0))
    accuracy.legend(loc="lower right")
    for axes, arm, panel in ((plain, "plain", "(b)"), (bn, "bn", "(c)")):
        _percentiles(axes, rows, arm)
        axes.set(
            title=f"{panel} input of a sigmoid, {STYLES[arm]['label']}", ylabel="value at 15th, 50th, 85th percentile"
        )
    bn.sharey(plain)
    plain.autoscale()
    for axes in (accuracy, plain, bn):
        axes.set_xlabel("training steps")
        axes.set_xlim(left=0)
        axes.grid(alpha=0.25)
        axes.xaxis.set_major_formatter(lambda step, _: f"{step / 1000:g}k" if step else "0")
    return _save(figure, folder, "figure1")


def figure2(records: Sequence[Record], folder: Path) -> list[Path]:
    """Fig. 2: top-1 against steps, a line a variant, its mean over seeds in a band from the worst to the best."""
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.subplots()
    groups = by_variant(records)
    for name, members in groups.items():
        style = VARIANT_STYLES[name]
        steps, low, middle, high = band(members)
        marks = {"marker": style["marker"], "markevery": -(-len(steps) // MARKERS)} if "marker" in style else {}
        axes.plot(steps, middle, style["dash"], color=style["color"], lw=1.8, label=name, **marks)
        axes.fill_between(steps, low, high, color=style["color"], alpha=0.15, lw=0)
        ends = [record.diverged for record in members if record.diverged is not None]
        if ends:
            axes.plot(min(ends), 0, "x", color=style["color"], clip_on=False, label=f"{name} diverged")
    axes.set(xlabel="training steps", ylabel="top-1 on the validation images", xlim=(0, None), ylim=(0, 1))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(alpha=0.25)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside lower center", ncols=4, frameon=False)  # within, it would hide what stays at chance
    return _save(figure, folder, "figure2")


def accuracy_floor(rows: list[Row]) -> float:
    """Where the accuracy axis starts: at the paper's 0.7 if both arms get well past it, else at 0."""
    last = {row["arm"]: row["test_accuracy"] for row in rows}
    return 0.7 if min(last.values(), default=0.0) > 0.8 else 0.0


def series(rows: list[Row], arm: str, column: str) -> tuple[list[int], list[float]]:
    """Steps and values of one curve; NaN where the network had diverged."""
    own = [row for row in rows if row["arm"] == arm]
    return [row["step"] for row in own], [float("nan") if row[column] is None else row[column] for row in own]


def heat_map(rows: list[Row], folder: Path) -> list[Path]:
    """Test accuracy over learning rate and initial standard deviation, an arm a panel, the best setting framed."""
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    steps = {row["step"] for row in rows}
    image = None
    for axes, (arm, style) in zip(panels, STYLES.items(), strict=True):
        means = grid_means(rows, arm)
        lrs, stds = sorted({lr for lr, _ in means}), sorted({std for _, std in means})
        grid = [[means.get((lr, std), float("nan")) for lr in lrs] for std in stds]
        image = axes.imshow(grid, vmin=0, vmax=1, cmap="cividis", origin="lower", aspect="auto")
        best = max(means, key=lambda setting: means[setting], default=None)
        for (lr, std), value in means.items():
            x, y = lrs.index(lr), stds.index(std)
            weight = "bold" if (lr, std) == best else "normal"
            axes.text(
                x,
                y,
                f"{value:.3f}",
                ha="center",
                va="center",
                weight=weight,
                color="white" if value < 0.55 else "black",
            )
            if (lr, std) == best:
                axes.add_patch(Rectangle((x - 0.48, y - 0.48), 0.96, 0.96, fill=False, lw=2.5, color="#D55E00"))
        axes.set_xticks(range(len(lrs)), [f"{lr:g}" for lr in lrs])
        axes.set_yticks(range(len(stds)), [f"{std:g}" for std in stds])
        axes.set(title=style["label"], xlabel="learning rate")
    panels[0].set_ylabel("initial standard deviation")
    if image is not None:
        figure.colorbar(image, ax=panels, label=f"test accuracy after {max(steps):,} steps, mean over seeds")
    return _save(figure, folder, "sweep")


def _percentiles(axes: Axes, rows: list[Row], arm: str) -> None:
    color = STYLES[arm]["color"]
    (steps, low), (_, middle), (_, high) = (series(rows, arm, f"p{p}") for p in PERCENTILES)
    for values, width in ((low, 0.8), (middle, 1.3), (high, 0.8)):
        axes.plot(steps, values, color=color, lw=width)
    axes.fill_between(steps, low, high, color=color, alpha=0.15, lw=0)


def _save(figure: Figure, folder: Path, name: str) -> list[Path]:
    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    for path in paths:
        figure.savefig(path, dpi=150)
    return paths
