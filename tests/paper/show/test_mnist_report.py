"""The page of Sec. 4.1 shows the records, in a browser without a network."""

import pytest
from support.records import arm_rows

from batchnorm.errors import StorageError
from batchnorm.paper.show.mnist_report import steps_table, write_mnist_report


def test_steps_table():
    head, plain, normalized = steps_table(arm_rows())
    assert head == ["", "steps to 90%", "steps to 95%", "steps to 97%", "best", "last"]
    # 0.93 - 0.3 * 2^(-s/200) >= 0.9 from s = 664 on, 0.98 - … >= 0.9, 0.95, 0.97 from 381, 664, 981.
    assert plain == ["without BN", "700", "not reached", "not reached", "92.97%", "92.97%"]
    assert normalized[:4] == ["with BN", "400", "700", "1,000"]


def test_a_page_that_cannot_be_written_is_an_error_of_storage(tmp_path):
    with pytest.raises(StorageError, match=r"cannot write .*report\.html"):
        write_mnist_report(arm_rows(), {}, tmp_path / "gone")


@pytest.fixture(scope="module")
def page(open_page, tmp_path_factory):
    return open_page(write_mnist_report(arm_rows(), {"lr": 0.1, "data": None}, tmp_path_factory.mktemp("report")))


def test_the_page_needs_nothing_but_itself(page):
    assert [url for url in page.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert page.errors == []


@pytest.mark.parametrize(
    ("panel", "wanted"), [(1, ["test_accuracy"]), (2, ["p15", "p50", "p85"]), (3, ["p15", "p50", "p85"])]
)
def test_hovering_a_curve_reads_the_records(page, panel, wanted):
    suffix = "" if panel == 1 else str(panel)
    plot = page.tab.locator(f".draglayer .x{suffix}y{suffix} .nsewdrag")
    box = plot.bounding_box()
    page.tab.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.5)
    page.tab.wait_for_selector(".hoverlayer .legend")
    text = page.tab.locator(".hoverlayer .legend").text_content()
    assert text.startswith("1000")
    arms = {1: ("plain", "bn"), 2: ("plain",), 3: ("bn",)}[panel]
    for row in arm_rows():
        if row["step"] == 1000 and row["arm"] in arms:
            for column in wanted:
                assert f": {row[column]:.4f}" in text
    page.tab.mouse.move(2, 2)
    page.tab.wait_for_selector(".hoverlayer .legend", state="detached")


def test_the_table_and_the_settings_are_on_the_page(page):
    assert page.tab.locator("tbody tr").all_inner_texts() == ["\t".join(line) for line in steps_table(arm_rows())[1:]]
    assert page.tab.get_by_text("Settings: lr 0.1.").is_visible()
