"""Define the color, line style and marker of every curve, for matplotlib and for pages."""

from __future__ import annotations

from typing import NamedTuple


class Style(NamedTuple):
    """The look of one curve. Line style and marker are matplotlib's. `dark` is the color on a dark page, if another."""

    color: str
    dash: str
    marker: str = ""
    dark: str = ""


# Colors of Okabe and Ito, which color-blind readers can tell apart. Line styles tell the curves apart without color.
ARM_STYLES = {"plain": Style("#D55E00", "--"), "bn": Style("#0072B2", "-")}
# The ensemble has Paul Tol's "muted" colors. Line style and marker together are different for each.
VARIANT_STYLES = {
    "inception": Style("#000000", "--", dark="#FFFFFF"),
    "bn-baseline": Style("#E69F00", ":"),
    "bn-x5": Style("#0072B2", "-."),
    "bn-x30": Style("#D55E00", "-"),
    "bn-x5-sigmoid": Style("#009E73", "-", "P"),
    "inception-x5": Style("#56B4E9", "--", "s"),
    "inception-sigmoid": Style("#CC79A7", ":", "^"),
    "ensemble-1": Style("#332288", "-", "o", dark="#9A8CFF"),
    "ensemble-2": Style("#CC6677", "-", "s"),
    "ensemble-3": Style("#117733", "-", "^"),
    "ensemble-4": Style("#88CCEE", "-", "v"),
    "ensemble-5": Style("#882255", "-", "D", dark="#D24A94"),
    "ensemble-6": Style("#999933", "-", "X"),
}
# By network and factor on the learning rate: the color and the marker tell the network, the line style the rate.
CONTENDER_STYLES = {
    ("plain", 0.2): Style("#D55E00", ":"),
    ("plain", 1.0): Style("#D55E00", "--"),
    ("plain", 5.0): Style("#D55E00", "-."),
    ("plain", 30.0): Style("#D55E00", "-"),
    ("bn", 1.0): Style("#0072B2", "--", "o"),
    ("bn", 5.0): Style("#0072B2", "-.", "s"),
    ("bn", 30.0): Style("#0072B2", "-", "^"),
}
PERCENTILE_DASHES = {15: ":", 50: "-", 85: "--"}
MARKERS = 8  # at most, on a line
