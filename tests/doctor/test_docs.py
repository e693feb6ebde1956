"""The code in docs/doctor.md runs, page from top to bottom, and prints what it says."""

import re

import pytest
from support.paths import ROOT

NUMBER = r"\d+(?:\.\d+)?(?:e-?\d+)?"


def words(text):
    """Return the text without numbers, and with the widths of columns left out."""
    return re.sub(r"-{2,}", "--", re.sub(r" {2,}", "  ", re.sub(NUMBER, "#", text)))


def test_the_page_runs_and_prints_what_is_shown(tmp_path, monkeypatch, capsys):
    """The words are the same. Numbers of a network that was trained differ by its rounding, on another processor."""
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/doctor.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == page.count("```python") == 9
    names: dict[str, object] = {}
    for code, shown in blocks:
        exec(compile(code, "docs/doctor.md", "exec"), names)
        printed = capsys.readouterr().out
        assert words(printed) == words(shown)
        numbers = [list(map(float, re.findall(NUMBER, text))) for text in (printed, shown)]
        assert numbers[0] == pytest.approx(numbers[1], rel=0.2, abs=0.05)
