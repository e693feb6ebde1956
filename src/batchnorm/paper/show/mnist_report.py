"""`report.html`: one page that opens without a network, Figure 1 interactive above the table of steps to accuracy."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..mnist.measure import PERCENTILES, steps_to
from ..training.atomic import write_atomically
from ..training.rows import Row
from .figures import STYLES, accuracy_floor, series

LEVELS = (0.90, 0.95, 0.97)
DASHES = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}
SYMBOLS = {"o": "circle", "s": "square", "^": "triangle-up", "v": "triangle-down", "D": "diamond", "X": "x"}


def steps_table(rows: list[Row]) -> list[list[str]]:
    """Header and a line an arm: steps to each of `LEVELS`, and the best and last test accuracy."""
    table = [["", *(f"steps to {level:.0%}" for level in LEVELS), "best", "last"]]
    for arm, style in STYLES.items():
        _, accuracies = series(rows, arm, "test_accuracy")
        if not accuracies:
            continue
        reached = (steps_to(rows, arm, level) for level in LEVELS)
        cells = ["not reached" if step is None else f"{step:,}" for step in reached]
        table.append([style["label"], *cells, f"{max(accuracies):.2%}", f"{accuracies[-1]:.2%}"])
    return table


def write_report(rows: list[Row], settings: dict[str, Any], folder: Path) -> Path:
    """Write `report.html` into `folder`, with everything it needs inside."""
    figure = _figure(rows).to_html(full_html=False, include_plotlyjs=True, config={"displaylogo": False})
    listed = ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)
    sections = [("", figure), ("", html_table(steps_table(rows)))]
    path = folder / "report.html"
    write_atomically(path, page("Batch Normalization on MNIST: Figure 1", _ABOUT, sections, f"Settings: {listed}."))
    return path


def page(title: str, about: str, sections: list[tuple[str, str]], settings: str) -> str:
    """A whole HTML page: `about` and the sections (heading, content) are HTML, the rest is text."""
    body = "\n".join(f"<h2>{escape(heading)}</h2>\n{content}" if heading else content for heading, content in sections)
    return _PAGE.format(title=escape(title), about=about, body=body, settings=escape(settings))


def _figure(rows: list[Row]) -> go.Figure:
    titles = ["(a) test accuracy", "(b) input of a sigmoid, without BN", "(c) input of a sigmoid, with BN"]
    figure = make_subplots(rows=1, cols=3, subplot_titles=titles, horizontal_spacing=0.06)
    for arm, style in STYLES.items():
        line = {"color": style["color"], "dash": DASHES[style["dash"]]}
        steps, values = series(rows, arm, "test_accuracy")
        figure.add_scatter(x=steps, y=values, name=style["label"], line=line, row=1, col=1)
    for column, arm in ((2, "plain"), (3, "bn")):
        for p in PERCENTILES:
            steps, values = series(rows, arm, f"p{p}")
            band = {"fill": "tonexty", "fillcolor": STYLES[arm]["color"] + "26"} if p != PERCENTILES[0] else {}
            line = {"color": STYLES[arm]["color"], "width": 2 if p == 50 else 1}
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


def html_table(table: list[list[str]]) -> str:
    """The table, its first line the header."""
    head, *body = (
        "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in line)
        for tag, line in zip(["th"] + ["td"] * len(table), table, strict=False)
    )
    rows = "".join(f"<tr>{line}</tr>" for line in body)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


_ABOUT = """Ioffe and Szegedy, 2015, Sec. 4.1, computed by <code>batchnorm mnist</code>: the same network,
784-100-100-100-10 with sigmoids, from the same initial weights and on the same mini-batches, without and with batch
normalization.
(b, c): 15th, 50th and 85th percentile, over the test images, of what enters one sigmoid of the last hidden layer.
Normalised by moving averages of the training statistics, never by the test images' own."""


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 1280px; margin: 2rem auto; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse; margin: 1rem 0 }}
th, td {{ padding: .3rem 1rem; text-align: right; border-bottom: 1px solid #ccc }}
th:first-child, td:first-child {{ text-align: left }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{about}</p>
{body}
<p>{settings}</p>
</body>
</html>
"""
