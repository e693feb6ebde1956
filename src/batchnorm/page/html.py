"""Build an HTML page that opens offline."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import NamedTuple

from ..atomic import write_atomically

STYLE = Path(__file__).with_name("page.css")
SCRIPT = Path(__file__).with_name("chart.js")


class Section(NamedTuple):
    """A part of a page: its heading, plain text, and its content, HTML."""

    heading: str
    content: str


def write_page(path: Path, title: str, about: str, sections: Sequence[Section], settings: str) -> Path:
    """Write a page to the file `path` and return it. The page contains everything that it needs.

    Arguments:
        path: a file in an existing folder.
        title: title of the page, plain text.
        about: first paragraph, HTML.
        sections: the parts between the first and the last paragraph.
        settings: last paragraph, plain text.

    Raises:
        StorageError: the disk is full or the folder read-only.
    """
    parts = "\n".join(f"<section>\n<h2>{escape(head)}</h2>\n{content}\n</section>" for head, content in sections)
    body = f"<h1>{escape(title)}</h1>\n<p>{about}</p>\n{parts}\n<p>{escape(settings)}</p>"
    # A name of a file may have bytes that are not UTF-8.
    write_atomically(path, _page(escape(title), body).encode(errors="backslashreplace"))
    return path


def html_table(title: str, table: Sequence[Sequence[str]]) -> str:
    """Return a table as HTML. Its first line is the header; the first cell of each line names the line.

    A narrow page shows each line as a block. The roles keep it a table for screen readers.
    """
    head, *lines = table
    names = "".join(f'<th role="columnheader" scope="col">{escape(cell)}</th>' for cell in head)
    rows = "".join(f'<tr role="row">{_cells(head, line)}</tr>' for line in lines)
    return (
        f'<table role="table" aria-label="{escape(title)}"><thead role="rowgroup"><tr role="row">{names}</tr></thead>'
        f'<tbody role="rowgroup">{rows}</tbody></table>'
    )


def _cells(head: Sequence[str], line: Sequence[str]) -> str:
    cells = (
        f'<td role="cell" data-label="{escape(name)}">{escape(cell)}</td>'
        for name, cell in zip(head[1:], line[1:], strict=True)
    )
    return f'<th role="rowheader" scope="row">{escape(line[0])}</th>{"".join(cells)}'


def _page(title: str, body: str) -> str:
    script = SCRIPT.read_text(encoding="utf-8")
    digest = b64encode(sha256(script.encode()).digest()).decode()
    # The page loads nothing, and runs no script but ours.
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{STYLE.read_text(encoding="utf-8")}</style>
</head>
<body>
<main>
{body}
</main>
<script>{script}</script>
</body>
</html>
"""
