"""Rows as plain text: how the result of every transform prints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def format_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns aligned by spaces, a line a row: text to the left, numbers to the right, floats to four digits.

    Arguments:
        header: the columns' names.
        rows: as many cells each; None prints as an empty cell.
    """
    rows = list(rows)
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
    return f"{value:.4g}" if isinstance(value, float) else str(value)
