"""The page of Sec. 4.2 shows the records, in a browser without a network."""

from dataclasses import replace

import pytest
from support.records import comparison, evaluation, longest_cells, record

from batchnorm.paper.show.inception_report import write_inception_report
from batchnorm.paper.show.inception_tables import fig3_table

HOSTILE = "<img src=x onerror=fail()><script>fail()<'\">&amp;"


@pytest.fixture(scope="module")
def page(open_page, tmp_path_factory):
    return open_page(write_inception_report(comparison(), tmp_path_factory.mktemp("inception")))


def test_the_page_needs_nothing_but_itself(page):
    assert [url for url in page.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert page.errors == []


def test_the_legend_shows_every_variant_and_a_symbol_a_member(open_page, tmp_path):
    page = open_page(write_inception_report(longest_cells(), tmp_path)).tab
    assert page.locator(".legend button").count() == 13
    members = page.locator(".legend button", has_text="ensemble").locator(".marker")
    drawn = {(path.get_attribute("d"), path.evaluate("e => getComputedStyle(e).fill")) for path in members.all()}
    assert len({shape for shape, _ in drawn}) == 6
    assert len({fill for _, fill in drawn}) == 6
    assert page.locator(".curve").last.locator(".marker").count() == 6  # of 11 measurements, every second


def test_the_page_names_each_variant_and_what_diverged(page):
    names = page.tab.locator(".legend .name").all_inner_texts()
    assert names == ["inception", "bn-x5", "inception-x5diverged at step 300"]
    values = page.tab.locator(".legend .value").all_text_contents()
    assert values == ["80.00%", "95.00%", ""]
    cross, plot = page.tab.locator(".cross").bounding_box(), page.tab.locator(".plot").bounding_box()
    assert cross["x"] + cross["width"] / 2 == pytest.approx(plot["x"] + 0.3 * plot["width"], abs=1)
    lines = page.tab.locator("table").first.locator("tbody tr").all_inner_texts()
    assert lines == ["\t".join(line) for line in fig3_table(comparison())[1:]]


def test_names_from_outside_are_text(open_page, tmp_path):
    one = record("bn-x5", 0.9, evaluations=[evaluation(0.9) | {"name": HOSTILE}])
    config = replace(one.job.config, data=HOSTILE)
    page = open_page(write_inception_report([replace(one, job=replace(one.job, config=config))], tmp_path))
    assert page.errors == []
    assert page.tab.locator("img").count() == 0
    assert page.tab.get_by_role("rowheader", name=HOSTILE).is_visible()
    assert page.tab.get_by_text(f"Settings: data {HOSTILE}, ").is_visible()


def test_a_script_that_is_not_ours_does_not_run(open_page, tmp_path):
    report = write_inception_report(comparison(), tmp_path)
    report.write_text(report.read_text().replace("</main>", "<script>document.title = 'theirs'</script></main>"))
    page = open_page(report)
    assert page.tab.title() == "Batch Normalization: Figures 2 to 4"
    assert len(page.errors) == 1
    assert "Content Security Policy" in page.errors[0]


def test_runs_without_a_plain_network_have_a_page(tmp_path):
    assert write_inception_report([record("bn-x5", 0.9)], tmp_path).stat().st_size > 1000
