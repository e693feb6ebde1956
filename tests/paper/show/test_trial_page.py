"""The page and the picture of a trial, and docs/trial.md."""

import re
import struct
from functools import partial

import pytest
from support.paths import ROOT
from support.trials import linear_batches, small_mlp

import batchnorm as bn
from batchnorm.paper.trial.bands import bands, score_range
from batchnorm.paper.trial.prepare import reopen

WIDTHS = [(400, "dark"), (1280, "light")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return a trial of a network with a hostile name, in which contenders diverge."""
    network = partial(small_mlp)
    network.__qualname__ = "<script>document.title = 'ran'</script>"  # pyright: ignore[reportAttributeAccessIssue]
    folder = tmp_path_factory.mktemp("trial") / "run"
    return bn.trial(network, linear_batches(), lr=1.0, steps=20, seeds=2, eval_every=5, out=folder)


@pytest.mark.parametrize(("width", "mode"), WIDTHS)
def test_the_page_has_the_verdict_the_curves_and_the_table(open_page, finished, width, mode):
    page = open_page(finished.folder / "report.html", width, mode)
    assert page.errors == []
    assert page.tab.locator("strong").text_content() == finished.sentence
    assert page.tab.locator("li").all_text_contents()[: len(finished.notes)] == list(finished.notes)
    assert page.tab.locator(".curve").count() == len(finished.rows)
    assert page.tab.get_by_role("rowheader").all_text_contents() == [row.name for row in finished.rows]
    assert page.tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.tab.title() == "Trial of <script>document.title = 'ran'</script>"


def test_markers_stay_within_the_axes(open_page, finished):
    tab = open_page(finished.folder / "report.html").tab
    box = tab.locator(".plot").bounding_box()
    tops = [mark.bounding_box() for mark in tab.locator(".curve > svg + svg").all()]
    assert tops
    assert all(box["y"] - 12 <= top["y"] <= box["y"] + box["height"] + 12 for top in tops if top)


def test_the_axis_spans_the_first_scores_and_the_best_not_those_of_a_divergence(finished):
    run, settings = reopen(finished.folder)
    rows = run.rows()
    low, high = score_range(rows, settings)
    starts = [row["score"] for row in rows if row["step"] == 0]
    best = min(row["score"] for row in rows if row.get("score") is not None)
    assert low < best < max(starts) < high < max(row["score"] or 0 for row in rows if "score" in row)


def test_a_band_is_over_the_seeds(finished):
    run, settings = reopen(finished.folder)
    for contender, band in bands(run.rows(), settings).items():
        own = [row for row in run.rows() if (row["arm"], row["times"], row["step"]) == (*contender[:2], 0)]
        scores = [row["score"] for row in own]
        assert (band.low[0], band.high[0]) == (min(scores), max(scores))
        assert band.mean[0] == pytest.approx(sum(scores) / 2)


def test_the_pictures_are_pictures(finished):
    png = (finished.folder / "figure2.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", png[16:24]) == (1200, 825)
    assert "<svg" in (finished.folder / "figure2.svg").read_text()


def test_the_documentation_runs_and_prints_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/trial.md").read_text()
    names = {}
    blocks = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == page.count("```python")
    for code, output in blocks:
        exec(compile(code, "docs/trial.md", "exec"), names)
        assert capsys.readouterr().out == output
