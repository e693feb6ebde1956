"""Write the page of Sec. 4.2: Fig. 2, interactive, and the tables of Figs. 3 and 4."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...page.html import Section, html_table, write_page
from ..inception.comparison import PARTS, Record, band, by_variant, without_parts
from .chart import Chart, Curve, Spread, html_charts
from .inception_tables import FIG3_TITLE, FIG4_TITLE, fig3_table, fig4_table
from .recipe_table import RECIPE_TITLE, recipe_table
from .styles import VARIANT_STYLES

_ABOUT = """Ioffe and Szegedy, 2015, Sec. 4.2, computed by <code>batchnorm inception</code>: the Inception network of
Fig. 5 and its batch-normalized variants. Top-1 is over all validation images, one crop each, by population statistics
estimated from training images. Lines are means over seeds; bands reach from the worst seed to the best."""


def write_inception_report(records: Sequence[Record], folder: Path) -> Path:
    """Write `report.html` into `folder` and return its path. The page opens offline.

    Raises:
        StorageError: the disk is full or the folder read-only.
    """
    configs = {(r.job.config.data.rsplit("/", 1)[-1], r.job.config.size, r.job.config.batch_size) for r in records}
    settings = "; ".join(f"data {data}, {size}x{size}, batch {batch}" for data, size, batch in sorted(configs, key=str))
    recipe = Section(RECIPE_TITLE, html_table(RECIPE_TITLE, recipe_table(records)))
    sections = [
        Section("Figure 2: accuracy against training steps", html_charts([_chart(records)])),
        Section(FIG3_TITLE, html_table(FIG3_TITLE, fig3_table(records))),
        *([recipe] if any(record.job.variant.name in PARTS for record in records) else []),
        Section(FIG4_TITLE, html_table(FIG4_TITLE, fig4_table(records))),
    ]
    return write_page(
        folder / "report.html", "Batch Normalization: Figures 2 to 4", _ABOUT, sections, f"Settings: {settings}."
    )


def _chart(records: Sequence[Record]) -> Chart:
    curves = [_curve(name, members) for name, members in by_variant(without_parts(records)).items()]
    return Chart("Top-1 on the validation images", "mean over seeds", (0.0, 1.0), ".0%", ".2%", curves)


def _curve(name: str, members: Sequence[Record]) -> Curve:
    """Return the mean of one variant over its seeds, with their band, and the first step at which a seed diverged."""
    steps, worst, middle, best = band(members)
    spread = Spread(worst, best) if len(members) > 1 else None
    diverged = min((record.diverged for record in members if record.diverged is not None), default=None)
    return Curve(name, VARIANT_STYLES[name], steps, middle, spread, diverged)
