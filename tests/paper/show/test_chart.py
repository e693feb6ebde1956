"""Charts are drawn to scale from any values."""

import re
from math import inf, nan

import pytest

from batchnorm.paper.show.chart import Chart, Curve, Spread, html_charts, ticks
from batchnorm.paper.show.styles import Style


def drawn(curve, y_range=(0.0, 1.0)):
    """Return the HTML of a chart with one curve."""
    return html_charts([Chart("title", "share", y_range, "g", ".2f", [curve])])


def path(html, kind):
    """Return the outline of the line or the band."""
    return re.findall(rf'<g class="curve".*?class="{kind}"[^>]* d="([^"]*)"', html)[0]


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (0, 50_000, [0, 10_000, 20_000, 30_000, 40_000, 50_000]),
        (0.7, 1.0, [0.7, 0.8, 0.9, 1.0]),
        (-2.9, 2.3, [-2, 0, 2]),
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-3e38, 2e38, [-3e38, -2e38, -1e38, 0, 1e38, 2e38]),
        (0.4, 0.9, [0.4, 0.5, 0.6, 0.7, 0.8, 0.9]),
    ],
)
def test_ticks_are_round_and_at_most_six(low, high, wanted):
    assert ticks(low, high) == pytest.approx(wanted)


def test_a_line_is_drawn_to_scale():
    assert path(drawn(Curve("one", Style("#000000", "-"), [0, 50, 200], [0.0, 1.0, 0.25])), "line") == (
        "M0.0 1000.0L250.0 0.0L1000.0 750.0"
    )


@pytest.mark.parametrize("missing", [nan, inf, -inf])
def test_values_that_are_not_finite_leave_a_gap(missing):
    values = [0.0, 0.5, missing, 0.5, 1.0]
    spread = Spread([0.0] * 5, [0.0, 1.0, missing, 1.0, 1.0])
    html = drawn(Curve("one", Style("#000000", "-"), [0, 1, 2, 3, 4], values, spread))
    assert path(html, "line") == "M0.0 1000.0L250.0 500.0M750.0 500.0L1000.0 0.0"
    assert path(html, "band").count("M") == 2
    assert 'data-values="0.00|0.50|not finite|0.50|1.00"' in html
    assert not re.search(r"[ML ](nan|-?inf)", html)


def test_a_value_without_neighbors_is_a_dot():
    html = drawn(Curve("one", Style("#000000", "-"), [0, 1, 2, 3], [0.5, nan, 0.5, 0.5]))
    assert html.count('class="marker"') == 1


def test_the_name_of_a_curve_is_text():
    html = drawn(Curve('<b>"', Style("#000000", "-"), [0], [0.5]))
    assert "<b>" not in html
    assert "&lt;b&gt;&quot; 0.50" in html
