"""The page of Sec. 4.2 shows the records, in a browser without a network."""

import pytest
from support.records import comparison, longest_cells, record

from batchnorm.paper.inception.comparison import fig3_table
from batchnorm.paper.show.inception_report import write_inception_report


@pytest.fixture(scope="module")
def page(open_page, tmp_path_factory):
    return open_page(write_inception_report(comparison(), tmp_path_factory.mktemp("inception")))


def test_the_page_needs_nothing_but_itself(page):
    assert [url for url in page.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert page.errors == []


def test_the_page_shows_the_whole_legend_and_a_symbol_a_member(open_page, tmp_path):
    page = open_page(write_inception_report(longest_cells(), tmp_path)).tab
    box = page.locator(".legend .bg").bounding_box()
    names = page.locator(".legend .legendtext")
    bottoms = [place["y"] + place["height"] for place in (name.bounding_box() for name in names.all())]
    assert len(bottoms) == 14
    assert max(bottoms) <= box["y"] + box["height"]
    symbols = page.locator(".scatterlayer .points path.point")
    drawn = {(path.get_attribute("d"), path.evaluate("e => getComputedStyle(e).fill")) for path in symbols.all()}
    assert len({shape for shape, _ in drawn}) >= 6
    assert len({fill for _, fill in drawn}) >= 6


def test_the_page_names_each_variant_and_what_diverged(page):
    names = sorted(page.tab.locator(".legend .legendtext").all_text_contents())
    assert names == ["bn-x5", "inception", "inception-x5", "inception-x5 diverged"]
    lines = page.tab.locator("table").first.locator("tbody tr").all_inner_texts()
    assert lines == ["\t".join(line) for line in fig3_table(comparison())[1:]]


def test_runs_without_a_plain_network_have_a_page(tmp_path):
    assert write_inception_report([record("bn-x5", 0.9)], tmp_path).stat().st_size > 1000
