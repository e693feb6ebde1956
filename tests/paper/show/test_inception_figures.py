"""Fig. 2 is drawn from any choice of runs, and its curves are told apart without color."""

import pytest
from PIL import Image
from support.records import CHOICES, comparison

from batchnorm.paper.show.inception_figures import figure2
from batchnorm.paper.show.styles import VARIANT_STYLES


def test_variants_are_told_apart_without_colors_too():
    assert len({style.color for style in VARIANT_STYLES.values()}) == 13
    assert len({(style.dash, style.marker) for style in VARIANT_STYLES.values()}) == 13


def test_figure2_is_drawn_as_png_and_svg(tmp_path):
    png, svg = figure2(comparison(), tmp_path)
    assert (png.name, svg.name) == ("figure2.png", "figure2.svg")
    with Image.open(png) as image:
        assert image.size == (1200, 825)
    assert svg.read_text().startswith("<?xml")


@pytest.mark.parametrize("records", CHOICES.values(), ids=CHOICES)
def test_any_choice_of_runs_is_drawn(records, tmp_path):
    assert all(path.stat().st_size > 1000 for path in figure2(records, tmp_path))
