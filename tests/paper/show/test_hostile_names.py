"""Names from files, such as those of evaluations and of data, are shown as they are and act on nothing."""

from pathlib import Path

import pytest
from support.records import arm_rows, comparison, evaluation, record

from batchnorm.paper.show.inception_report import write_inception_report
from batchnorm.paper.show.inception_tables import fig4_table
from batchnorm.paper.show.mnist_report import write_mnist_report
from batchnorm.paper.show.terminal import print_paths, print_table

HOSTILE = [
    "<script>document.title = 'ran'</script>",
    "<img src=x onerror=\"document.title = 'ran'\">",
    '"><b onmouseover=alert(1)>bold</b>',
    "&lt;b&gt; &amp;",
    "javascript:alert(1) {x} %s",
    "</td></tr></table><h1>forged</h1>",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_of_evaluations_are_text_on_the_page(open_page, tmp_path, name):
    runs = [*comparison()[:3], record("bn-x30", 0.9, evaluations=[evaluation(0.75) | {"name": name}])]
    page = open_page(write_inception_report(runs, tmp_path))
    shown = page.tab.locator("table").last.locator("tbody th").first
    assert shown.text_content() == name
    assert page.tab.title() != "ran"
    assert page.tab.locator("script").count() == 1
    assert page.tab.locator("img, b, h1 >> text=forged").count() == 0
    assert page.errors == []


@pytest.mark.parametrize("name", HOSTILE)
def test_settings_are_text_on_the_page(open_page, tmp_path, name):
    page = open_page(write_mnist_report(arm_rows(), {"data": f"/data/{name}"}, tmp_path))
    assert f"data /data/{name}." in (page.tab.locator("main > p").last.text_content() or "")
    assert page.tab.title() != "ran"
    assert page.tab.locator("script").count() == 1
    assert page.errors == []


def test_a_name_with_a_byte_that_is_not_utf_8_has_a_page(tmp_path):
    page = write_mnist_report(arm_rows(), {"data": "/data/\udcff"}, tmp_path)
    assert r"data /data/\udcff." in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("evil\x1b[31m", r"evil\x1b[31m"),
        ("two\nlines", r"two\nlines"),
        ("[red]markup[/red]", "[red]markup[/red]"),
        ("[/]", "[/]"),
        ("\u202egnp", r"\u202egnp"),
    ],
)
def test_the_terminal_shows_names_and_acts_on_none(monkeypatch, capsys, name, shown):
    monkeypatch.setenv("COLUMNS", "160")
    runs = [record("bn-x5", 0.9, evaluations=[evaluation(0.75) | {"name": name}])]
    print_table(name, fig4_table(runs))
    print_paths([Path("runs") / name])
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert lines[0].strip() == shown
    assert any(line.strip().startswith(f"{shown} ") for line in lines[1:-1])
    assert lines[-1] == f"runs/{shown}"
    assert not set(name) & set(printed) - set(shown) - {"\n"}
