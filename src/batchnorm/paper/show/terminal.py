"""Print tables and paths in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...escape import printable


def print_table(title: str, lines: list[list[str]]) -> None:
    """Print lines of cells under a title. The first line is the header.

    Cells may come from files: control characters are escaped, and rich's markup is plain text.
    """
    style = {"title_justify": "left", "collapse_padding": True, "pad_edge": False}
    table = Table(title=Text(printable(title), style="table.title"), box=box.SIMPLE_HEAD, **style)
    for column, name in enumerate(lines[0]):
        # In a narrow terminal cells wrap between words. The names of the lines, in the first column, never wrap.
        table.add_column(_cell(name), justify="right" if column else "left", no_wrap=not column)
    for line in lines[1:]:
        table.add_row(*map(_cell, line))
    Console().print(table)


def print_paths(paths: Sequence[Path]) -> None:
    """Print a path a line, unwrapped so that it can be copied."""
    for path in paths:  # rich would wrap long paths
        print(printable(path))


def _cell(text: str) -> Text:
    return Text(printable(text))
