"""Draw line charts as HTML with inline SVG, which fits any width and needs no library."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import ceil, floor, isfinite, log10
from typing import NamedTuple

from .styles import MARKERS, Style

# An SVG stretches the lines to the width of the page. So their coordinates go from 0 to SIZE, both ways.
SIZE = 1000
DASHES = {"-": "", "--": "7 4", "-.": "8 3 2 3", ":": "2 3"}  # lengths of dash and gap in pixels
# Outlines about (0, 0), in pixels, by matplotlib's names.
MARKER_PATHS = {
    "o": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "s": "M-4-4h8v8h-8z",
    "^": "M0-5l5 9h-10z",
    "v": "M0 5l5-9h-10z",
    "D": "M0-5l5 5l-5 5l-5-5z",
    "X": "M-4.5-2.5l2-2l2.5 2.5l2.5-2.5l2 2l-2.5 2.5l2.5 2.5l-2 2l-2.5-2.5l-2.5 2.5l-2-2l2.5-2.5z",
    "P": "M-1.5-5h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5v-3h3.5z",
}
CROSS = '<path class="cross" d="M-4.5-4.5l9 9m0-9l-9 9"/>'


class Spread(NamedTuple):
    """The lower and the upper edge of the band around a curve."""

    low: Sequence[float]
    high: Sequence[float]


class Curve(NamedTuple):
    """One curve. Values that are not finite leave a gap; `diverged` is the step at which a cross marks the axis."""

    name: str
    style: Style
    steps: Sequence[int]
    values: Sequence[float]
    spread: Spread | None = None
    diverged: int | None = None


class Chart(NamedTuple):
    """Curves over training steps. `y_format` is for the numbers at the axis, `value_format` for a chosen point's."""

    title: str
    y_label: str
    y_range: tuple[float, float]
    y_format: str
    value_format: str
    curves: Sequence[Curve]

    @property
    def last(self) -> int:
        """The step where the x axis ends."""
        return max([1, *(step for curve in self.curves for step in (*curve.steps, curve.diverged or 0))])

    def x(self, step: float) -> float:
        """Return the distance of a step from the left, between 0 and `SIZE`."""
        return SIZE * step / self.last

    def y(self, value: float) -> float:
        """Return the distance of a value from the top. It is between 0 and `SIZE` for values in `y_range`."""
        low, high = self.y_range
        return SIZE * (high - value) / (high - low)


def html_charts(charts: Sequence[Chart]) -> str:
    """Return charts as HTML, side by side where there is room. `chart.js` makes them interactive."""
    return f'<div class="charts">{"".join(map(_chart, charts))}</div>'


def ticks(low: float, high: float) -> list[float]:
    """Return the multiples of 1, 2 or 5 times a power of ten between `low` and `high`: at most 6, and evenly spaced."""
    power = 10.0 ** floor(log10((high - low) / 5))
    step = next(power * factor for factor in (1, 2, 5, 10) if (high - low) / (power * factor) <= 5 + 1e-9)
    return [number * step for number in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]


def _chart(chart: Chart) -> str:
    ends = ", ".join(f"{curve.name} {_shown(chart, curve)[-1]}" for curve in chart.curves if curve.values)
    summary = f"{chart.title}: {chart.y_label} against training steps. At the end: {ends or 'no measurement'}."
    curves = "".join(_curve(chart, curve) for curve in chart.curves)
    svg = f'<svg role="img" aria-label="{escape(summary)}">{_grid(chart)}{curves}</svg>'
    return (
        f'<figure class="chart" data-last="{chart.last}"><figcaption>{escape(chart.title)}</figcaption>'
        f'<p class="label">{escape(chart.y_label)}</p><div class="plot">{svg}'
        f'<div class="cursor" aria-label="training step"><i></i></div></div><p class="label below">training steps</p>'
        f'<output class="label"></output><ul class="legend">{"".join(map(_legend, chart.curves))}</ul></figure>'
    )


def _grid(chart: Chart) -> str:
    """Return the grid lines, and the numbers at the axes."""
    lines = []
    for value in ticks(*chart.y_range):
        y = f"{chart.y(value) / SIZE:.2%}"
        lines.append(
            f'<line x2="100%" y1="{y}" y2="{y}"/><text class="y" x="-8" y="{y}">{value:{chart.y_format}}</text>'
        )
    for step in (int(tick) for tick in ticks(0, chart.last) if tick == int(tick)):
        x = f"{chart.x(step) / SIZE:.2%}"
        text = f"{step / 1000:g}k" if step >= 1000 else str(step)
        lines.append(f'<line x1="{x}" x2="{x}" y2="100%"/><text class="x" x="{x}" y="100%">{text}</text>')
    return f'<g class="grid">{"".join(lines)}</g>'


def _curve(chart: Chart, curve: Curve) -> str:
    paths = "".join(_path(chart, curve.steps[run], curve.values[run]) for run in _finite_runs(curve.values))
    lines = _band(chart, curve) + _line(curve.style, paths)
    shape = _marker(curve.style.marker or "o")
    marks = "".join(
        _place(chart, curve.steps[index], curve.values[index], shape)
        for index in _marked(curve)
        if chart.y_range[0] <= curve.values[index] <= chart.y_range[1]
    )
    if curve.diverged is not None:
        marks += _place(chart, curve.diverged, chart.y_range[0], CROSS)
    steps, shown = " ".join(map(str, curve.steps)), "|".join(_shown(chart, curve))
    return (
        f'<g class="curve" style="{_colors(curve.style)}" data-steps="{steps}" data-values="{escape(shown)}">'
        f'<svg viewBox="0 0 {SIZE} {SIZE}" preserveAspectRatio="none">{lines}</svg>{marks}</g>'
    )


def _band(chart: Chart, curve: Curve) -> str:
    """Return the area between the edges, where both are finite."""
    if curve.spread is None:
        return ""
    low, high = curve.spread
    outlines = (
        _path(chart, [*curve.steps[run], *reversed(curve.steps[run])], [*low[run], *reversed(high[run])])
        for run in _finite_runs([one + other for one, other in zip(low, high, strict=True)])
    )
    return f'<path class="band" d="{"".join(outlines)}"/>'


def _legend(curve: Curve) -> str:
    """Return a button that shows and hides the curve, with a place for the curve's value at the chosen step."""
    marker = f'<g transform="translate(18 6)">{_marker(curve.style.marker)}</g>' if curve.style.marker else ""
    swatch = f'<svg width="36" height="12" aria-hidden="true">{_line(curve.style, "M2 6h32")}{marker}</svg>'
    end = f"<small>diverged at step {curve.diverged:,}</small>" if curve.diverged is not None else ""
    return (
        f'<li><button type="button" aria-pressed="true" style="{_colors(curve.style)}">{swatch}'
        f'<span class="name">{escape(curve.name)}{end}</span><span class="value"></span></button></li>'
    )


def _finite_runs(values: Sequence[float]) -> list[slice]:
    """Return the stretches of finite values."""
    edges = [index for index, value in enumerate(values) if not isfinite(value)]
    bounds = zip([-1, *edges], [*edges, len(values)], strict=True)
    return [slice(before + 1, after) for before, after in bounds if after > before + 1]


def _marked(curve: Curve) -> list[int]:
    """Return the indices of points with a marker. A point without neighbors has one, as it has no line."""
    every = -(-len(curve.values) // MARKERS) or 1
    return [
        index
        for run in _finite_runs(curve.values)
        for index in range(run.start, run.stop)
        if run.stop == run.start + 1 or (curve.style.marker and index % every == 0)
    ]


def _shown(chart: Chart, curve: Curve) -> list[str]:
    return [f"{value:{chart.value_format}}" if isfinite(value) else "not finite" for value in curve.values]


def _path(chart: Chart, steps: Sequence[int], values: Sequence[float]) -> str:
    points = (f"{chart.x(step):.1f} {chart.y(value):.1f}" for step, value in zip(steps, values, strict=True))
    return "M" + "L".join(points)


def _place(chart: Chart, step: int, value: float, shape: str) -> str:
    return f'<svg x="{chart.x(step) / SIZE:.2%}" y="{chart.y(value) / SIZE:.2%}">{shape}</svg>'


def _marker(name: str) -> str:
    return f'<path class="marker" d="{MARKER_PATHS[name]}"/>'


def _line(style: Style, path: str) -> str:
    return f'<path class="line" stroke-dasharray="{DASHES[style.dash] or "none"}" d="{path}"/>'


def _colors(style: Style) -> str:
    return f"--light:{style.color};--dark:{style.dark or style.color}"
