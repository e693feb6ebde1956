"""Pictures and page are drawn from records alone; the page is opened in a real browser with the network off."""

import shutil

import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

from batchnorm.paper.figures import accuracy_floor, figure1, heat_map
from batchnorm.paper.report import steps_table, write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def made_up_rows():
    """21 measurements an arm whose values tell arm, step and column apart."""
    return [
        {
            "step": step,
            "arm": arm,
            "loss": 1.0,
            "test_accuracy": round(best - 0.3 * 0.5 ** (step / 200), 4),
            "p15": -1 - step / 1e4 - offset,
            "p50": step / 1e4 + offset,
            "p85": 1 + step / 1e4 + offset,
        }
        for step in range(0, 2001, 100)
        for arm, best, offset in (("plain", 0.93, 0.0), ("bn", 0.98, 0.125))
    ]


def grid_rows():
    return [
        {"lr": lr, "std": std, "seed": 1, "arm": arm, "step": 50, "test_accuracy": lr * std}
        for arm in ("plain", "bn")
        for lr in (0.1, 1.0)
        for std in (0.1, 0.5)
    ]


def size(png):
    with Image.open(png) as image:
        return image.size


def test_figure1_is_drawn_as_png_and_svg(tmp_path):
    png, svg = figure1(made_up_rows(), tmp_path)
    assert (png.name, svg.name) == ("figure1.png", "figure1.svg")
    width, height = size(png)
    assert width > 1500
    assert 0.2 < height / width < 0.5
    assert svg.read_text().startswith("<?xml")


def test_a_diverged_run_is_drawn(tmp_path):
    rows = made_up_rows()
    rows[-1] |= {"p15": None, "p50": None, "p85": None}
    assert all(path.stat().st_size > 1000 for path in figure1(rows, tmp_path))


def test_a_run_of_one_measurement_is_drawn(tmp_path):
    assert all(path.exists() for path in figure1(made_up_rows()[:2], tmp_path))


def test_heat_map_of_a_part_of_the_grid(tmp_path):
    png, _ = heat_map(grid_rows()[:-3], tmp_path)
    assert size(png)[0] > 1000


def test_the_accuracy_axis_starts_at_the_papers_value_only_if_nothing_is_hidden():
    assert accuracy_floor(made_up_rows()) == 0.7
    assert accuracy_floor([{"arm": "bn", "test_accuracy": 0.9}, {"arm": "plain", "test_accuracy": 0.3}]) == 0.0


def test_steps_table():
    head, plain, normalised = steps_table(made_up_rows())
    assert head == ["", "steps to 90%", "steps to 95%", "steps to 97%", "best", "last"]
    # 0.93 - 0.3 * 2^(-s/200) >= 0.9 from s = 664 on, 0.98 - … >= 0.9, 0.95, 0.97 from 381, 664, 981.
    assert plain == ["without BN", "700", "not reached", "not reached", "92.97%", "92.97%"]
    assert normalised[:4] == ["with BN", "400", "700", "1,000"]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no chromium on the PATH: the page was not opened in a browser (Debian: apt-get install chromium)")
    report = write_report(made_up_rows(), {"lr": 0.1, "data": None}, tmp_path_factory.mktemp("report"))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        context = browser.new_context(offline=True, viewport={"width": 1280, "height": 800})
        tab = context.new_page()
        tab.errors, tab.requests = [], []
        tab.on("pageerror", lambda error: tab.errors.append(str(error)))
        tab.on("console", lambda message: tab.errors.append(message.text) if message.type == "error" else None)
        tab.on("request", lambda request: tab.requests.append(request.url))
        tab.goto(report.as_uri())
        tab.wait_for_selector(".plotly .scatterlayer .trace path.js-line")
        yield tab
        browser.close()


def test_the_page_needs_nothing_but_itself(page):
    assert [url for url in page.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert page.errors == []


@pytest.mark.parametrize(
    ("panel", "wanted"), [(1, ["test_accuracy"]), (2, ["p15", "p50", "p85"]), (3, ["p15", "p50", "p85"])]
)
def test_hovering_a_curve_reads_the_records(page, panel, wanted):
    suffix = "" if panel == 1 else str(panel)
    plot = page.locator(f".draglayer .x{suffix}y{suffix} .nsewdrag")
    box = plot.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.5)
    page.wait_for_selector(".hoverlayer .legend")
    text = page.locator(".hoverlayer .legend").text_content()
    assert text.startswith("1000")
    arms = {1: ("plain", "bn"), 2: ("plain",), 3: ("bn",)}[panel]
    for row in made_up_rows():
        if row["step"] == 1000 and row["arm"] in arms:
            for column in wanted:
                assert f": {row[column]:.4f}" in text
    page.mouse.move(2, 2)
    page.wait_for_selector(".hoverlayer .legend", state="detached")


def test_the_table_and_the_settings_are_on_the_page(page):
    assert page.locator("tbody tr").all_inner_texts() == ["\t".join(line) for line in steps_table(made_up_rows())[1:]]
    assert page.get_by_text("Settings: lr 0.1.").is_visible()
