"""Count and print the rows of a result."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from ..escape import printable


class Row(Protocol):
    """Tell what became of one layer or place."""

    @property
    def outcome(self) -> str:
        """Return one word, such as "kept"."""
        ...


def count(rows: Iterable[Row], outcome: str) -> int:
    """Return the number of rows with this outcome."""
    return sum(row.outcome == outcome for row in rows)


def shown(name: str) -> str:
    """Return the name of a layer for a table. A network that is one layer has an empty name in itself."""
    return name or "(itself)"


def format_table(
    header: Sequence[str], rows: Iterable[Sequence[object]], empty: str = "no batch normalization found"
) -> str:
    """Align rows in columns, one line per row, without trailing spaces.

    Text is aligned to the left and numbers to the right. Floats have four significant digits. Control characters in
    text are escaped.

    Arguments:
        header: the names of the columns.
        rows: one cell per column. None prints as an empty cell.
        empty: the line to return if there are no rows.
    """
    rows = list(rows)
    if not rows:
        return empty
    numeric = [any(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]
    lines = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    )


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else printable(value)
