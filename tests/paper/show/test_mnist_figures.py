"""Figures of Sec. 4.1 are drawn from any records."""

import pytest
from PIL import Image
from support.records import arm_rows, sweep_rows

from batchnorm.errors import StorageError
from batchnorm.paper.show.mnist_figures import accuracy_floor, figure1, heat_map


def test_figure1_is_drawn_as_png_and_svg(tmp_path):
    png, svg = figure1(arm_rows(), tmp_path)
    assert (png.name, svg.name) == ("figure1.png", "figure1.svg")
    with Image.open(png) as image:
        width, height = image.size
    assert width > 1500
    assert 0.2 < height / width < 0.5
    assert svg.read_text().startswith("<?xml")


def test_a_diverged_run_is_drawn(tmp_path):
    rows = arm_rows()
    rows[-1] |= {"p15": None, "p50": None, "p85": None}
    assert all(path.stat().st_size > 1000 for path in figure1(rows, tmp_path))


def test_a_run_of_one_measurement_is_drawn(tmp_path):
    assert all(path.exists() for path in figure1(arm_rows()[:2], tmp_path))


@pytest.mark.parametrize("rows", [sweep_rows()[:-3], sweep_rows()[:1]], ids=["part of the grid", "one training"])
def test_heat_map_of_a_part_of_the_sweep(rows, tmp_path):
    png, _ = heat_map(rows, tmp_path)
    with Image.open(png) as image:
        assert image.size[0] > 1000


def test_the_accuracy_axis_starts_at_the_papers_value_only_if_nothing_is_hidden():
    assert accuracy_floor(arm_rows()) == 0.7
    assert accuracy_floor([{"arm": "bn", "test_accuracy": 0.9}, {"arm": "plain", "test_accuracy": 0.3}]) == 0.0


def test_a_picture_that_cannot_be_written_is_an_error_of_storage(tmp_path):
    with pytest.raises(StorageError, match=r"cannot write .*figure1\.png"):
        figure1(arm_rows(), tmp_path / "gone")
