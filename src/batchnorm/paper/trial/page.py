"""Write the page of a trial: the verdict, Fig. 2, interactive, and the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path

from ...page.html import Section, html_table, write_page
from ..show.chart import Chart, Curve, Spread, html_charts
from ..show.styles import CONTENDER_STYLES
from ..training.rows import Row
from .bands import bands, score_range
from .config import TrialConfig, TrialSettings
from .tables import trial_table
from .verdict import Judgment

TABLE_TITLE = "Steps to the plain network's best, and the best"
_ABOUT = """The network without and with batch normalization, from the same weights on the same mini-batches, as in
Fig. 2 of Ioffe and Szegedy, 2015. The score is over the held-out batches, by population statistics estimated from
training batches. Lines are means over seeds; bands reach from the lowest seed to the highest."""


def write_trial_page(rows: Sequence[Row], settings: TrialSettings, judgment: Judgment, folder: Path) -> Path:
    """Write `report.html` into `folder` and return its path. The page opens offline.

    Raises:
        StorageError: the disk is full or the folder read-only.
    """
    notes = "".join(f"<li>{escape(note)}</li>" for note in judgment.notes)
    about = f"<strong>{escape(judgment.sentence)}</strong></p>{f'<ul>{notes}</ul>' if notes else ''}<p>{_ABOUT}"
    heading = f"Figure 2 for this network: {settings.score} against training steps"
    sections = [
        Section(heading, html_charts([_chart(rows, settings)])),
        Section(TABLE_TITLE, html_table(TABLE_TITLE, trial_table(judgment.rows, judgment.level, settings.score))),
    ]
    title, last = f"Trial of {settings.network}", f"Settings: {_listed(settings)}."
    return write_page(folder / "report.html", title, about, sections, last)


def _chart(rows: Sequence[Row], settings: TrialSettings) -> Chart:
    drawn = [
        Curve(
            contender.label,
            CONTENDER_STYLES[contender.arm, contender.times],
            band.steps,
            band.mean,
            Spread(band.low, band.high) if settings.seeds > 1 else None,
            band.diverged,
        )
        for contender, band in bands(rows, settings).items()
    ]
    formats = (".0%", ".2%") if settings.score == "accuracy" else ("g", ".4g")
    title = f"{settings.score} on the held-out batches"
    return Chart(title, "mean over seeds", score_range(rows, settings), *formats, drawn)


def _listed(settings: TrialSettings) -> str:
    names = ("data", "eval_data", "loss", "metric", *TrialConfig.__dataclass_fields__)
    values = {name.replace("_", " "): asdict(settings)[name] for name in names}
    shown = {name: " and ".join(value) if isinstance(value, tuple) else value for name, value in values.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items() if value)
