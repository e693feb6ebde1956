"""`report.html` of Figs. 2 to 4: one page that opens without a network, the curves above the paper's two tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from ..inception.comparison import Record, band, by_variant, fig3_table, fig4_table
from ..training.atomic import write_atomically
from .figures import MARKERS, VARIANT_STYLES
from .mnist_report import DASHES, SYMBOLS, html_table, page

_ABOUT = """Ioffe and Szegedy, 2015, Sec. 4.2, computed by <code>batchnorm inception</code>: the Inception network of
Fig. 5 and its batch-normalized variants. Top-1 is over all validation images, one crop each, by population statistics
estimated from training images; lines are means over seeds, bands reach from the worst seed to the best."""


def write_inception_report(records: Sequence[Record], folder: Path) -> Path:
    """Write `report.html` into `folder`, with everything it needs inside."""
    configs = {(r.job.config.data.rsplit("/", 1)[-1], r.job.config.size, r.job.config.batch_size) for r in records}
    settings = "; ".join(f"data {data}, {size}x{size}, batch {batch}" for data, size, batch in sorted(configs, key=str))
    sections = [
        (
            "Figure 2: accuracy against training steps",
            _figure(records).to_html(full_html=False, include_plotlyjs=True, config={"displaylogo": False}),
        ),
        ("Figure 3: steps to the plain network's best, and the best", html_table(fig3_table(records))),
        ("Figure 4: crops and ensembles", html_table(fig4_table(records))),
    ]
    path = folder / "report.html"
    write_atomically(path, page("Batch Normalization: Figures 2 to 4", _ABOUT, sections, f"Settings: {settings}."))
    return path


def _figure(records: Sequence[Record]) -> go.Figure:
    figure = go.Figure()
    for name, members in by_variant(records).items():
        style = VARIANT_STYLES[name]
        steps, low, middle, high = band(members)
        line = {"color": style["color"], "dash": DASHES[style["dash"]]}
        if len(members) > 1:
            edge = {
                "line": {"width": 0},
                "hoverinfo": "skip",
                "showlegend": False,
                "legendgroup": name,
                "mode": "lines",
            }
            figure.add_scatter(x=steps, y=low, **edge)
            figure.add_scatter(x=steps, y=high, fill="tonexty", fillcolor=style["color"] + "26", **edge)
        hover = "%{y:.2%}"
        marks: dict[str, Any] = {"mode": "lines"}
        if "marker" in style:
            marker = {"symbol": SYMBOLS[style["marker"]], "size": 8, "maxdisplayed": MARKERS}
            marks = {"mode": "lines+markers", "marker": marker}
        figure.add_scatter(x=steps, y=middle, line=line, name=name, legendgroup=name, hovertemplate=hover, **marks)
        ends = [record.diverged for record in members if record.diverged is not None]
        if ends:
            cross = {"color": style["color"], "symbol": "x", "size": 9}
            diverged = {"name": f"{name} diverged", "legendgroup": name, "hovertemplate": "diverged"}
            figure.add_scatter(x=[min(ends)], y=[0], marker=cross, mode="markers", cliponaxis=False, **diverged)
    figure.update_xaxes(title_text="training steps")
    figure.update_yaxes(title_text="top-1 on the validation images", tickformat=".0%", range=[0, 1])
    figure.update_layout(
        hovermode="x unified", template="plotly_white", height=520, margin={"t": 40}, legend={"tracegroupgap": 0}
    )
    return figure
