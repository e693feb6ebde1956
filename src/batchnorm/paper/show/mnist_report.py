"""Write the page of Sec. 4.1: Fig. 1, interactive, and the table of steps to accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..mnist.records import ARMS, LABELS, PERCENTILES, series, steps_to
from ..training.rows import Row
from .html import Section, html_figure, html_table, write_page
from .mnist_figures import accuracy_floor
from .styles import ARM_STYLES, FILL_ALPHA, PLOTLY_DASHES

LEVELS = (0.90, 0.95, 0.97)
_ABOUT = """Ioffe and Szegedy, 2015, Sec. 4.1, computed by <code>batchnorm mnist</code>: the same network,
784-100-100-100-10 with sigmoids, with and without batch normalization. Both start from the same weights and train on
the same mini-batches. (b, c): 15th, 50th and 85th percentile, over the test images, of the input of one sigmoid in the
last hidden layer. The test images are normalized by moving averages of the training statistics, never by their own."""


def steps_table(rows: list[Row]) -> list[list[str]]:
    """Return a header and a line an arm: steps to each of `LEVELS`, and the best and the last test accuracy."""
    table = [["", *(f"steps to {level:.0%}" for level in LEVELS), "best", "last"]]
    for arm in ARMS:
        _, accuracies = series(rows, arm, "test_accuracy")
        if not accuracies:
            continue
        reached = (steps_to(rows, arm, level) for level in LEVELS)
        cells = ["not reached" if step is None else f"{step:,}" for step in reached]
        table.append([LABELS[arm], *cells, f"{max(accuracies):.2%}", f"{accuracies[-1]:.2%}"])
    return table


def write_mnist_report(rows: list[Row], settings: dict[str, Any], folder: Path) -> Path:
    """Write `report.html` into `folder` and return its path. The page opens offline.

    Raises:
        StorageError: The disk is full or the folder read-only.
    """
    listed = ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)
    sections = [Section("", html_figure(_figure(rows))), Section("", html_table(steps_table(rows)))]
    return write_page(folder, "Batch Normalization on MNIST: Figure 1", _ABOUT, sections, f"Settings: {listed}.")


def _figure(rows: list[Row]) -> go.Figure:
    titles = ["(a) test accuracy", "(b) input of a sigmoid, without BN", "(c) input of a sigmoid, with BN"]
    figure = make_subplots(rows=1, cols=3, subplot_titles=titles, horizontal_spacing=0.06)
    for arm, style in ARM_STYLES.items():
        line = {"color": style.color, "dash": PLOTLY_DASHES[style.dash]}
        steps, values = series(rows, arm, "test_accuracy")
        figure.add_scatter(x=steps, y=values, name=LABELS[arm], line=line, row=1, col=1)
    for column, arm in ((2, "plain"), (3, "bn")):
        for p in PERCENTILES:
            steps, values = series(rows, arm, f"p{p}")
            color = ARM_STYLES[arm].color
            band = {"fill": "tonexty", "fillcolor": color + FILL_ALPHA} if p != PERCENTILES[0] else {}
            line = {"color": color, "width": 2 if p == 50 else 1}
            figure.add_scatter(
                x=steps, y=values, name=f"{p}th percentile", line=line, showlegend=False, row=1, col=column, **band
            )
    figure.update_yaxes(range=[accuracy_floor(rows), 1], row=1, col=1)
    figure.update_yaxes(matches="y2", row=1, col=3)
    figure.update_xaxes(title_text="training steps")
    figure.update_traces(mode="lines", hovertemplate="%{y:.4f}")
    figure.update_layout(
        hovermode="x unified", template="plotly_white", height=460, margin={"t": 80}, legend={"x": 0.14, "y": 0.08}
    )
    return figure
