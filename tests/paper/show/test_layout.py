"""Both pages are legible on a phone, a tablet and a desktop, in light and dark mode, and in print."""

import json
import re
from itertools import product

import pytest
from support.paths import ROOT
from support.records import longest_cells

from batchnorm.paper.show.inception_report import write_inception_report
from batchnorm.paper.show.inception_tables import FIG3_TITLE, FIG4_TITLE
from batchnorm.paper.show.mnist_report import write_mnist_report
from batchnorm.paper.show.recipe_table import RECIPE_TITLE
from batchnorm.paper.show.styles import ARM_STYLES, VARIANT_STYLES
from batchnorm.paper.training.rows import read_rows

# A box a line of each text, and a box a plot. The header of a table is out of sight where its rows are blocks.
BOXES = """() => {
  const found = [], shown = (text) => (text.parentElement.closest("thead")?.offsetWidth ?? 2) > 1;
  const add = (text, rects) => { for (const r of rects)
    if (r.width && r.height) found.push([text, r.left, r.top, r.right, r.bottom]) };
  const walk = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT), range = new Range();
  while (walk.nextNode()) {
    if (!walk.currentNode.data.trim() || !shown(walk.currentNode)) continue;
    range.selectNodeContents(walk.currentNode);
    add(walk.currentNode.data, range.getClientRects());
  }
  document.querySelectorAll(".plot").forEach((plot) => add("plot", [plot.getBoundingClientRect()]));
  return found;
}"""
TOO_WIDE = """() => [...document.querySelectorAll("main *")].filter((e) => !e.closest("thead, .curve") && (
  e.getBoundingClientRect().right > innerWidth ||
  e instanceof HTMLElement && e.clientWidth && e.scrollWidth > e.clientWidth
)).map((e) => e.outerHTML.slice(0, 80))"""
LOOK = "(e, name) => getComputedStyle(e, name.includes('::') ? '::before' : null)[name.split('::')[0]]"
CASES = list(product(("mnist", "inception"), (400, 800, 1400), ("light", "dark")))
SLACK = 1.5  # pixels; glyphs are smaller than their boxes


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    run = ROOT / "records" / "mnist" / "seed-1"
    settings = json.loads((run / "config.json").read_text())
    mnist = write_mnist_report(read_rows(run / "metrics.jsonl"), settings, tmp_path_factory.mktemp("mnist"))
    return {"mnist": mnist, "inception": write_inception_report(longest_cells(), tmp_path_factory.mktemp("inception"))}


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(map(str, case)))
def page(request, open_page, reports):
    name, width, mode = request.param
    return open_page(reports[name], width, mode).tab


def overlaps(tab):
    """Return the pairs of texts and plots that lie over one another."""
    boxes = tab.evaluate(BOXES)
    return [
        (one[0], other[0])
        for index, one in enumerate(boxes)
        for other in boxes[:index]
        if min(one[3], other[3]) - max(one[1], other[1]) > SLACK
        and min(one[4], other[4]) - max(one[2], other[2]) > SLACK
    ]


def contrast(one, other):
    """Return the contrast of two colors such as `rgb(0, 114, 178)`, by WCAG 2."""
    darker, lighter = sorted(map(luminance, (one, other)))
    return (lighter + 0.05) / (darker + 0.05)


def luminance(color):
    """Return the relative luminance of a color, by WCAG 2."""
    channels = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def rgb(color):
    return f"rgb({', '.join(str(int(color[place : place + 2], 16)) for place in (1, 3, 5))})"


@pytest.mark.parametrize("name", ["mnist", "inception"])
def test_a_page_is_small(reports, name):
    assert reports[name].stat().st_size < 500_000


def test_nothing_overlaps(page):
    assert len(page.evaluate(BOXES)) > 50
    assert overlaps(page) == []


def test_nothing_scrolls_sideways(page):
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate(TOO_WIDE) == []


def test_text_has_contrast(page):
    background = page.locator("body").evaluate(LOOK, "backgroundColor")
    page.locator(".legend button").last.click()
    page.mouse.move(2, 2)
    for place in ("p", ".label", ".grid .x", "th", "td", ".name", ".value", "[aria-pressed=false] .name"):
        color = page.locator(place).last.evaluate(LOOK, "fill" if "grid" in place else "color")
        assert contrast(color, background) >= 4.5, place  # WCAG 2, level AA
    page.locator(".legend button").last.click()
    assert contrast(page.locator("td").first.evaluate(LOOK, "color::before"), background) >= 4.5


@pytest.mark.parametrize(("width", "rows"), [(400, 3), (800, 2), (1400, 1)])
def test_panels_stack_where_there_is_no_room(open_page, reports, width, rows):
    plots = [plot.bounding_box() for plot in open_page(reports["mnist"], width).tab.locator(".plot").all()]
    assert len({round(box["y"]) for box in plots}) == rows
    assert all(box["width"] > 250 for box in plots)


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize(("name", "styles"), [("mnist", ARM_STYLES), ("inception", VARIANT_STYLES)])
def test_curves_have_their_colors(open_page, reports, name, styles, mode):
    chart = open_page(reports[name], scheme=mode).tab.locator(".chart").first
    drawn = [curve.evaluate(LOOK, "stroke") for curve in chart.locator(".curve .line").all()]
    assert drawn == [rgb((mode == "dark" and style.dark) or style.color) for style in styles.values()]
    assert len(set(drawn)) == len(drawn)
    background = chart.page.locator("body").evaluate(LOOK, "backgroundColor")
    assert luminance(background) == 1 if mode == "light" else luminance(background) < 0.02
    if mode == "dark":  # on white, some colors of Okabe and Ito have less
        assert min(contrast(color, background) for color in drawn) >= 3  # WCAG 2, graphics


@pytest.mark.parametrize("name", ["mnist", "inception"])
def test_print_is_on_white_and_cuts_no_panel(open_page, reports, name):
    tab = open_page(reports[name], 680, "dark").tab  # A4 less margins
    tab.emulate_media(media="print", color_scheme="dark")
    assert tab.locator("body").evaluate(LOOK, "backgroundColor") == "rgb(255, 255, 255)"
    assert luminance(tab.locator("body").evaluate(LOOK, "color")) < 0.02
    assert {chart.evaluate(LOOK, "breakInside") for chart in tab.locator(".chart").all()} == {"avoid"}
    assert overlaps(tab) == []
    assert tab.evaluate(TOO_WIDE) == []
    style = next(iter((ARM_STYLES if name == "mnist" else VARIANT_STYLES).values()))
    assert tab.locator(".curve .line").first.evaluate(LOOK, "stroke") == rgb(style.color)


def test_a_table_is_a_table_for_screen_readers_on_a_phone_too(open_page, reports):
    table = open_page(reports["mnist"], 400).tab.get_by_role(
        "table", name="Training steps to a test accuracy, and the best"
    )
    assert table.get_by_role("row").count() == 3
    assert table.get_by_role("columnheader", name="steps to 90%").count() == 1
    assert table.get_by_role("rowheader", name="with BN").count() == 1
    assert table.get_by_role("cell").count() == 10


def test_a_page_has_a_language_a_title_and_one_first_heading(open_page, reports):
    tab = open_page(reports["inception"]).tab
    assert tab.locator("html").get_attribute("lang") == "en"
    assert tab.title() == tab.locator("h1").inner_text() == "Batch Normalization: Figures 2 to 4"
    headings = tab.get_by_role("main").get_by_role("heading", level=2).all_inner_texts()
    assert headings == ["Figure 2: accuracy against training steps", FIG3_TITLE, RECIPE_TITLE, FIG4_TITLE]
