"""Draw the figures of Sec. 4.1 from records: Fig. 1 and the heat map of the sweep."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from ..mnist.records import ARMS, LABELS, PERCENTILES, grid_means, series
from ..training.rows import Row
from .pictures import save_picture
from .styles import ARM_STYLES

FRAME = "#D55E00"  # stands out from the colors of the map, cividis


def figure1(rows: list[Row], folder: Path) -> list[Path]:
    """Draw Fig. 1: (a) test accuracy of both arms, (b, c) the input of one sigmoid without and with BN."""
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    accuracy, plain, bn = figure.subplots(1, 3)
    for arm, style in ARM_STYLES.items():
        accuracy.plot(*series(rows, arm, "test_accuracy"), style.dash, color=style.color, label=LABELS[arm])
    accuracy.set(title="(a) test accuracy", ylabel="fraction of test images", ylim=(accuracy_floor(rows), 1.0))
    accuracy.legend(loc="lower right")
    for axes, arm, panel in ((plain, "plain", "(b)"), (bn, "bn", "(c)")):
        _plot_percentiles(axes, rows, arm)
        title = f"{panel} input of a sigmoid, {LABELS[arm]}"
        axes.set(title=title, ylabel="value at 15th, 50th, 85th percentile")
    bn.sharey(plain)
    plain.autoscale()
    for axes in (accuracy, plain, bn):
        axes.set_xlabel("training steps")
        axes.set_xlim(left=0)
        axes.grid(alpha=0.25)
        axes.xaxis.set_major_formatter(lambda step, _: f"{step / 1000:g}k" if step else "0")
    return save_picture(figure, folder, "figure1")


def accuracy_floor(rows: list[Row]) -> float:
    """Return where the accuracy axis starts: the paper's 0.7 if both arms end above 0.8, otherwise 0."""
    last = {row["arm"]: row["test_accuracy"] for row in rows}
    return 0.7 if min(last.values(), default=0.0) > 0.8 else 0.0


def heat_map(rows: list[Row], folder: Path) -> list[Path]:
    """Draw test accuracy over learning rate and initial standard deviation, a panel an arm, its best setting framed."""
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    images = [_plot_grid(axes, rows, arm) for axes, arm in zip(panels, ARMS, strict=True)]
    panels[0].set_ylabel("initial standard deviation")
    steps = max(row["step"] for row in rows)
    figure.colorbar(images[0], ax=panels, label=f"test accuracy after {steps:,} steps, mean over seeds")
    return save_picture(figure, folder, "sweep")


def _plot_percentiles(axes: Axes, rows: list[Row], arm: str) -> None:
    color = ARM_STYLES[arm].color
    (steps, low), (_, middle), (_, high) = (series(rows, arm, f"p{p}") for p in PERCENTILES)
    for values, width in ((low, 0.8), (middle, 1.3), (high, 0.8)):
        axes.plot(steps, values, color=color, lw=width)
    axes.fill_between(steps, low, high, color=color, alpha=0.15, lw=0)


def _plot_grid(axes: Axes, rows: list[Row], arm: str) -> AxesImage:
    """Plot the mean test accuracy of one arm at every setting of the rows, each with its number."""
    means = grid_means(rows, arm)
    lrs, stds = sorted({row["lr"] for row in rows}), sorted({row["std"] for row in rows})
    grid = [[means.get((lr, std), float("nan")) for lr in lrs] for std in stds]
    image = axes.imshow(grid, vmin=0, vmax=1, cmap="cividis", origin="lower", aspect="auto")
    best = max(means, key=lambda setting: means[setting], default=None)
    for (lr, std), value in means.items():
        x, y, framed = lrs.index(lr), stds.index(std), (lr, std) == best
        weight, color = "bold" if framed else "normal", "white" if value < 0.55 else "black"
        axes.text(x, y, f"{value:.3f}", ha="center", va="center", weight=weight, color=color)
        if framed:
            axes.add_patch(Rectangle((x - 0.48, y - 0.48), 0.96, 0.96, fill=False, lw=2.5, color=FRAME))
    axes.set_xticks(range(len(lrs)), [f"{lr:g}" for lr in lrs])
    axes.set_yticks(range(len(stds)), [f"{std:g}" for std in stds])
    axes.set(title=LABELS[arm], xlabel="learning rate")
    return image
