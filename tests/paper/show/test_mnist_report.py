"""The page of Sec. 4.1 shows the records, in a browser without a network."""

import pytest
from support.records import arm_rows

from batchnorm.errors import StorageError
from batchnorm.paper.show.mnist_report import write_mnist_report
from batchnorm.paper.show.mnist_tables import steps_table

QUANTILES = ["p15", "p50", "p85"]
PANELS = [(0, ["test_accuracy"], ("plain", "bn")), (1, QUANTILES, ("plain",)), (2, QUANTILES, ("bn",))]


def test_a_page_that_cannot_be_written_is_an_error_of_storage(tmp_path):
    with pytest.raises(StorageError, match=r"cannot write .*report\.html"):
        write_mnist_report(arm_rows(), {}, tmp_path / "gone")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    settings = {"lr": 0.1, "data": None, "made_with": {"torch": "2.8"}}
    return write_mnist_report(arm_rows(), settings, tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(open_page, report):
    return open_page(report)


def readings(chart):
    """Return what the legend of a chart shows: the step and the values."""
    return [chart.locator("output").text_content(), *chart.locator(".value").all_text_contents()]


def wanted(step, columns, arms):
    """Return the readings of a chart at a step, from the rows."""
    form = "{:.2%}" if columns == ["test_accuracy"] else "{:.4f}"
    rows = [row for row in arm_rows() if row["step"] == step and row["arm"] in arms]
    return [form.format(row[column]) for row in rows for column in columns]


def test_the_page_needs_nothing_but_itself(page):
    assert [url for url in page.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert page.errors == []


@pytest.mark.parametrize(("panel", "columns", "arms"), PANELS)
def test_hovering_a_chart_reads_the_records(page, panel, columns, arms):
    chart = page.tab.locator(".chart").nth(panel)
    chart.scroll_into_view_if_needed()
    box = chart.locator(".plot").bounding_box()
    page.tab.mouse.move(box["x"] + box["width"] * 0.51, box["y"] + box["height"] * 0.5)
    assert readings(chart) == ["at step 1,000", *wanted(1000, columns, arms)]
    line = chart.locator(".cursor i").bounding_box()
    assert line["x"] == pytest.approx(box["x"] + box["width"] / 2, abs=1)
    page.tab.mouse.move(2, 2)
    assert readings(chart)[0] == "at step 2,000"
    assert not chart.locator(".cursor i").is_visible()


def test_a_finger_reads_the_records_and_the_reading_stays(open_page, report):
    tab = open_page(report, 400, has_touch=True, is_mobile=True).tab
    chart = tab.locator(".chart").first
    chart.locator(".cursor").scroll_into_view_if_needed()
    box = chart.locator(".cursor").bounding_box()
    tab.touchscreen.tap(box["x"] + box["width"] * 0.25, box["y"] + 20)
    assert readings(chart) == ["at step 500", *wanted(500, ["test_accuracy"], ("plain", "bn"))]


def test_the_keyboard_reads_the_records(open_page, report):
    chart = open_page(report).tab.locator(".chart").first
    slider = chart.get_by_role("slider", name="training step")
    slider.press("Home")
    assert readings(chart) == ["at step 0", *wanted(0, ["test_accuracy"], ("plain", "bn"))]
    slider.press("ArrowLeft")
    assert readings(chart)[0] == "at step 0"
    slider.press("ArrowRight")
    assert readings(chart)[0] == "at step 100"
    plain, bn = wanted(100, ["test_accuracy"], ("plain", "bn"))
    assert slider.get_attribute("aria-valuetext") == f"at step 100, without BN {plain}, with BN {bn}"


def test_the_legend_hides_and_shows_a_curve(open_page, report):
    chart = open_page(report).tab.locator(".chart").first
    button, curve = chart.get_by_role("button", name="with BN"), chart.locator(".curve").nth(1)
    button.click()
    assert not curve.is_visible()
    assert button.get_attribute("aria-pressed") == "false"
    assert "with BN" not in chart.locator(".cursor").get_attribute("aria-valuetext")
    button.click()
    assert curve.is_visible()
    assert button.get_attribute("aria-pressed") == "true"


def test_the_drawing_ends_where_the_records_end(page):
    # The last accuracy of BN is 97.97 % on an axis from 70 to 100 %: 6.8 % of the height below its top.
    chart = page.tab.locator(".chart").first
    ends = "e => e.getPointAtLength(e.getTotalLength())"
    point = chart.locator(".curve .line").nth(1).evaluate(f"e => {{ const p = ({ends})(e); return [p.x, p.y] }}")
    assert point == pytest.approx([1000, 1000 * (1 - 0.9797) / 0.3], abs=0.2)


def test_a_chart_is_an_image_with_a_text(page):
    text = page.tab.locator(".chart svg[role=img]").first.get_attribute("aria-label")
    assert text == (
        "(a) test accuracy: share of test images against training steps. At the end: without BN 92.97%, with BN 97.97%."
    )


def test_the_table_and_the_settings_are_on_the_page(page):
    assert page.tab.locator("tbody tr").all_inner_texts() == ["\t".join(line) for line in steps_table(arm_rows())[1:]]
    assert page.tab.get_by_text("Settings: lr 0.1, torch 2.8.").is_visible()


def test_a_diverged_run_has_a_page(open_page, tmp_path):
    rows = [row | {"p15": None, "p50": None, "p85": None} if row["step"] > 500 else row for row in arm_rows()]
    page = open_page(write_mnist_report(rows, {}, tmp_path))
    assert page.errors == []
    assert page.tab.locator(".chart").nth(2).locator(".value").all_text_contents() == ["not finite"] * 3


@pytest.mark.parametrize("rows", [[], arm_rows()[:1], arm_rows()[:2]], ids=["none", "one arm", "one step"])
def test_a_run_that_just_began_has_a_page(open_page, rows, tmp_path):
    page = open_page(write_mnist_report(rows, {}, tmp_path))
    assert page.errors == []
    assert page.tab.locator(".chart .marker:not(.legend *)").count() == 4 * len(rows)
