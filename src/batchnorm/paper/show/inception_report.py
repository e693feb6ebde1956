"""Write the page of Sec. 4.2: Fig. 2, interactive, and the tables of Figs. 3 and 4."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from ..inception.comparison import Record, band, by_variant, fig3_table, fig4_table
from .html import Section, html_figure, html_table, write_page
from .styles import FILL_ALPHA, MARKERS, PLOTLY_DASHES, PLOTLY_SYMBOLS, VARIANT_STYLES

FIG3_TITLE = "Figure 3: steps to the plain network's best, and the best"
FIG4_TITLE = "Figure 4: crops and ensembles"
_ABOUT = """Ioffe and Szegedy, 2015, Sec. 4.2, computed by <code>batchnorm inception</code>: the Inception network of
Fig. 5 and its batch-normalized variants. Top-1 is over all validation images, one crop each, by population statistics
estimated from training images. Lines are means over seeds; bands reach from the worst seed to the best."""


def write_inception_report(records: Sequence[Record], folder: Path) -> Path:
    """Write `report.html` into `folder` and return its path. The page opens offline.

    Raises:
        StorageError: The disk is full or the folder read-only.
    """
    configs = {(r.job.config.data.rsplit("/", 1)[-1], r.job.config.size, r.job.config.batch_size) for r in records}
    settings = "; ".join(f"data {data}, {size}x{size}, batch {batch}" for data, size, batch in sorted(configs, key=str))
    sections = [
        Section("Figure 2: accuracy against training steps", html_figure(_figure(records))),
        Section(FIG3_TITLE, html_table(fig3_table(records))),
        Section(FIG4_TITLE, html_table(fig4_table(records))),
    ]
    return write_page(folder, "Batch Normalization: Figures 2 to 4", _ABOUT, sections, f"Settings: {settings}.")


def _figure(records: Sequence[Record]) -> go.Figure:
    figure = go.Figure()
    for name, members in by_variant(records).items():
        _add_variant(figure, name, members)
    figure.update_xaxes(title_text="training steps")
    figure.update_yaxes(title_text="top-1 on the validation images", tickformat=".0%", range=[0, 1])
    figure.update_layout(
        hovermode="x unified", template="plotly_white", height=520, margin={"t": 40}, legend={"tracegroupgap": 0}
    )
    return figure


def _add_variant(figure: go.Figure, name: str, members: Sequence[Record]) -> None:
    """Add the mean of one variant over its seeds, their band, and where the first seed diverged."""
    style = VARIANT_STYLES[name]
    steps, low, middle, high = band(members)
    if len(members) > 1:
        edge = {"line": {"width": 0}, "hoverinfo": "skip", "showlegend": False, "legendgroup": name, "mode": "lines"}
        figure.add_scatter(x=steps, y=low, **edge)
        figure.add_scatter(x=steps, y=high, fill="tonexty", fillcolor=style.color + FILL_ALPHA, **edge)
    marks: dict[str, Any] = {"mode": "lines"}
    if style.marker:
        marker = {"symbol": PLOTLY_SYMBOLS[style.marker], "size": 8, "maxdisplayed": MARKERS}
        marks = {"mode": "lines+markers", "marker": marker}
    line = {"color": style.color, "dash": PLOTLY_DASHES[style.dash]}
    figure.add_scatter(x=steps, y=middle, line=line, name=name, legendgroup=name, hovertemplate="%{y:.2%}", **marks)
    ends = [record.diverged for record in members if record.diverged is not None]
    if ends:
        cross = {"color": style.color, "symbol": "x", "size": 9}
        diverged = {"name": f"{name} diverged", "legendgroup": name, "hovertemplate": "diverged"}
        figure.add_scatter(x=[min(ends)], y=[0], marker=cross, mode="markers", cliponaxis=False, **diverged)
