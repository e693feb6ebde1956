"""Pictures and page are drawn from records alone; the page is opened in a real browser with the network off."""

import shutil
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

import batchnorm as bn
from batchnorm.paper.inception.comparison import Record, by_variant, fig3_table, fig4_table, read_records
from batchnorm.paper.inception.config import InceptionConfig
from batchnorm.paper.inception.jobs import Job
from batchnorm.paper.inception.settled import settled
from batchnorm.paper.inception.variants import BY_NAME
from batchnorm.paper.show.console import print_table
from batchnorm.paper.show.figures import VARIANT_STYLES, accuracy_floor, figure1, figure2, heat_map
from batchnorm.paper.show.inception_report import write_inception_report
from batchnorm.paper.show.mnist_report import steps_table, write_report
from batchnorm.paper.training.run import Run

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
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium on the PATH: the page was not opened in a browser (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def opened(browser, report):
    """The page, without a network."""
    tab = browser.new_context(offline=True, viewport={"width": 1280, "height": 800}).new_page()
    tab.errors, tab.requests = [], []
    tab.on("pageerror", lambda error: tab.errors.append(str(error)))
    tab.on("console", lambda message: tab.errors.append(message.text) if message.type == "error" else None)
    tab.on("request", lambda request: tab.requests.append(request.url))
    tab.goto(report.as_uri())
    tab.wait_for_selector(".plotly .scatterlayer .trace path.js-line")
    return tab


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):
    return opened(browser, write_report(made_up_rows(), {"lr": 0.1, "data": None}, tmp_path_factory.mktemp("report")))


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


def record(name, best, seed=1, diverged=None, evaluations=()):
    """A run of 1,000 steps that rises to `best` in equal parts, or ends where it diverged."""
    config = settled(InceptionConfig("fashion", seed=seed), BY_NAME[name])
    end = 1000 if diverged is None else diverged
    rows = [{"step": step, "loss": 1.0, "top1": best * step / 1000, "top5": 1.0} for step in range(0, end + 1, 100)]
    if diverged is not None:
        rows[-1] = {"step": diverged, "loss": None, "diverged": True}
    return Record(Job(BY_NAME[name], config, Path(name)), rows, list(evaluations))


def comparison():
    found = [record("inception", 0.8), record("bn-x5", 0.9), record("bn-x5", 1.0, seed=2)]
    return [*found, record("inception-x5", 0.5, diverged=300)]


def evaluation(top1, crops=1):
    return {"name": "bn-x5", "runs": ["bn-x5, seed 1"], "crops": crops, "size": 28, "top1": top1, "top5": 1.0}


def test_variants_are_told_apart_without_colours_too():
    assert len({style["color"] for style in VARIANT_STYLES.values()}) == 13
    assert len({style["marker"] for name, style in VARIANT_STYLES.items() if name.startswith("ensemble")}) == 6
    assert len({VARIANT_STYLES[name]["dash"] for name in ("inception", "bn-baseline", "bn-x5", "bn-x30")}) == 4


def test_figure2_is_drawn_as_png_and_svg(tmp_path):
    png, svg = figure2(comparison(), tmp_path)
    assert (png.name, svg.name) == ("figure2.png", "figure2.svg")
    assert size(png) == (1200, 825)
    assert svg.read_text().startswith("<?xml")


@pytest.mark.parametrize(
    "records",
    [
        [record("bn-x5", 0.9)],
        [record("inception", 0.5, diverged=100), record("inception-x5", 0.5, diverged=200)],
        [record(f"ensemble-{number}", 0.9) for number in range(1, 7)],
    ],
    ids=["no plain network", "all diverged", "ensemble"],
)
def test_any_choice_of_runs_is_drawn_and_tabulated(records, tmp_path):
    assert all(
        path.stat().st_size > 1000 for path in [*figure2(records, tmp_path), write_inception_report(records, tmp_path)]
    )
    assert len(fig3_table(records)) == 1 + len({r.job.variant.name for r in records})


def test_fig3_table():
    head, plain, x5, diverged = fig3_table(comparison())
    assert head[3] == "steps to 80.00%"
    assert plain[3:6] == ["1,000", "80.00%", "1,000"]
    # 0.9 s / 1000 >= 0.8 from s = 889 on, measured at 900; 1.0 s / 1000 from 800.
    assert x5[2:6] == ["2", "850", "95.00% ± 7.07", "1,000"]
    assert diverged[3] == "never; diverged at 300"


def test_a_run_that_reached_the_level_and_diverged_says_both():
    table = fig3_table([record("inception", 0.2), record("bn-x5", 0.9, diverged=800)])
    assert table[2][3] == "300; diverged at 800"


def far_apart():
    """Runs whose cells are as long as they come: seeds that differ, that do not all arrive, that diverge late."""
    found = [record(name, best, seed) for name in VARIANT_STYLES for seed, best in ((1, 0.9), (2, 0.5))]
    return [*found, record("inception-x5", 1.0, seed=3, diverged=900)]


@pytest.mark.parametrize("table", [fig3_table, fig4_table])
def test_narrow_terminals_keep_every_word_of_every_column(monkeypatch, capsys, table):
    monkeypatch.setenv("COLUMNS", "80")
    lines = table(far_apart())
    print_table("Figure", lines)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    words = printed.split()
    assert {word for line in lines for cell in line for word in cell.split()} - set(words) == set()
    assert all(f" {line[0]} " in printed for line in lines[1:])


def test_the_ensemble_comes_after_the_variants_in_its_order():
    names = list(reversed(VARIANT_STYLES))
    assert list(by_variant([record(name, 0.9) for name in names])) == list(BY_NAME)


def test_what_a_network_could_no_longer_compute_is_divergence():
    gone = record("bn-x5", 0.9)
    gone.rows[4] |= {"top1": None, "top5": None}
    assert gone.diverged is None  # it came back
    gone.rows[-1] |= {"top1": None, "top5": None}
    assert gone.diverged == 1000
    assert gone.best["step"] == 900


def test_the_newest_evaluation_of_a_kind_counts():
    own = record("bn-x5", 0.9, evaluations=[evaluation(0.5), evaluation(0.75, crops=144), evaluation(0.875)])
    assert fig4_table([own])[1:3] == [
        ["bn-x5", "28", "1", "1", "12.50%", "0.00%"],
        ["bn-x5", "28", "144", "1", "25.00%", "0.00%"],
    ]


def test_runs_that_have_not_begun_are_left_out_of_a_report(tmp_path):
    for number, name in enumerate(("bn-x5", "bn-x30")):
        config = vars(settled(InceptionConfig("fashion"), BY_NAME[name]))
        run = Run.create(tmp_path / name, "inception", {"variant": name, **config})
        if number:
            run.append({"step": 0, "loss": None, "top1": 0.1, "top5": 0.5})
    assert [found.job.variant.name for found in read_records([tmp_path])] == ["bn-x30"]
    with pytest.raises(bn.BatchNormError, match="bn-x5 has no records yet; train it first"):
        read_records([tmp_path / "bn-x5"])


@pytest.fixture(scope="module")
def inception_page(browser, tmp_path_factory):
    return opened(browser, write_inception_report(comparison(), tmp_path_factory.mktemp("inception")))


def test_the_page_of_inception_needs_nothing_but_itself(inception_page):
    assert [url for url in inception_page.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert inception_page.errors == []


def test_the_page_of_inception_shows_the_whole_legend_and_a_symbol_a_member(browser, tmp_path):
    page = opened(browser, write_inception_report(far_apart(), tmp_path))
    box = page.locator(".legend .bg").bounding_box()
    names = page.locator(".legend .legendtext")
    bottoms = [place["y"] + place["height"] for place in (name.bounding_box() for name in names.all())]
    assert len(bottoms) == 14
    assert max(bottoms) <= box["y"] + box["height"]
    symbols = page.locator(".scatterlayer .points path.point")
    drawn = {(path.get_attribute("d"), path.evaluate("e => getComputedStyle(e).fill")) for path in symbols.all()}
    assert len({shape for shape, _ in drawn}) >= 6
    assert len({fill for _, fill in drawn}) >= 6


def test_the_page_of_inception_names_each_variant_and_what_diverged(inception_page):
    names = sorted(inception_page.locator(".legend .legendtext").all_text_contents())
    assert names == ["bn-x5", "inception", "inception-x5", "inception-x5 diverged"]
    lines = inception_page.locator("table").first.locator("tbody tr").all_inner_texts()
    assert lines == ["\t".join(line) for line in fig3_table(comparison())[1:]]
