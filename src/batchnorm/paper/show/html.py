"""Build an HTML page that opens offline."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import NamedTuple

import plotly.graph_objects as go

from ..training.atomic import write_atomically


class Section(NamedTuple):
    """A part of a page: its heading, plain text and maybe empty, and its content, HTML."""

    heading: str
    content: str


def write_page(folder: Path, title: str, about: str, sections: list[Section], settings: str) -> Path:
    """Write `report.html` into `folder` and return its path. The page contains everything that it needs.

    Arguments:
        folder: An existing folder.
        title: Title of the page, plain text.
        about: First paragraph, HTML.
        sections: The parts between the first and the last paragraph.
        settings: Last paragraph, plain text.

    Raises:
        StorageError: The disk is full or the folder read-only.
    """
    body = "\n".join(f"<h2>{escape(head)}</h2>\n{content}" if head else content for head, content in sections)
    path = folder / "report.html"
    write_atomically(path, _PAGE.format(title=escape(title), about=about, body=body, settings=escape(settings)))
    return path


def html_figure(figure: go.Figure) -> str:
    """Return an interactive figure as HTML, together with the whole of Plotly's script."""
    return figure.to_html(full_html=False, include_plotlyjs=True, config={"displaylogo": False})


def html_table(table: list[list[str]]) -> str:
    """Return a table as HTML. Its first line is the header."""
    head, *body = (
        "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in line)
        for tag, line in zip(["th"] + ["td"] * len(table), table, strict=False)
    )
    rows = "".join(f"<tr>{line}</tr>" for line in body)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


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
