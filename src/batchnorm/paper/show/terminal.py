"""Print tables and paths in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table


def print_table(title: str, lines: list[list[str]]) -> None:
    """Print lines of cells under a title. The first line is the header."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", collapse_padding=True, pad_edge=False)
    for column, name in enumerate(lines[0]):
        # In a narrow terminal cells wrap between words. The names of the lines, in the first column, never wrap.
        table.add_column(name, justify="right" if column else "left", no_wrap=not column)
    for line in lines[1:]:
        table.add_row(*line)
    Console().print(table)


def print_paths(paths: Sequence[Path]) -> None:
    """Print a path a line, unwrapped so that it can be copied."""
    for path in paths:  # rich would wrap long paths
        print(path)
