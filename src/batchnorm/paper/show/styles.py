"""Define the color, line style and marker of every curve, for matplotlib and for Plotly."""

from __future__ import annotations

from typing import NamedTuple


class Style(NamedTuple):
    """The look of one curve. Line style and marker are matplotlib's."""

    color: str
    dash: str
    marker: str = ""


# Colors of Okabe and Ito, which color-blind readers can tell apart. Line styles tell the curves apart without color.
ARM_STYLES = {"plain": Style("#D55E00", "--"), "bn": Style("#0072B2", "-")}
# The ensemble has Paul Tol's "muted" colors, and markers.
VARIANT_STYLES = {
    "inception": Style("#000000", "--"),
    "bn-baseline": Style("#E69F00", ":"),
    "bn-x5": Style("#0072B2", "-."),
    "bn-x30": Style("#D55E00", "-"),
    "bn-x5-sigmoid": Style("#009E73", "-"),
    "inception-x5": Style("#56B4E9", "--"),
    "inception-sigmoid": Style("#CC79A7", ":"),
    "ensemble-1": Style("#332288", "-", "o"),
    "ensemble-2": Style("#CC6677", "-", "s"),
    "ensemble-3": Style("#117733", "-", "^"),
    "ensemble-4": Style("#88CCEE", "-", "v"),
    "ensemble-5": Style("#882255", "-", "D"),
    "ensemble-6": Style("#999933", "-", "X"),
}
MARKERS = 8  # at most, on a line

# Plotly's names of matplotlib's line styles and markers.
PLOTLY_DASHES = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}
PLOTLY_SYMBOLS = {"o": "circle", "s": "square", "^": "triangle-up", "v": "triangle-down", "D": "diamond", "X": "x"}
FILL_ALPHA = "26"  # appended to a color: 15 % opaque
