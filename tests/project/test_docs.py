"""The code in docs/ runs, from top to bottom, and prints what it says. Older pages have tests beside their code."""

import re

import pytest
from support.paths import ROOT

PAGES = [
    "index",
    "index.zh-CN",
    "statistics",
    "howto/train-faster",
    "howto/deploy",
    "howto/fine-tune",
    "howto/recalibrate",
    pytest.param("howto/integrations", marks=pytest.mark.filterwarnings("ignore")),  # the trainers' own warnings
]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs_and_prints_what_is_shown(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(
        r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", (ROOT / f"docs/{page}.md").read_text(), re.DOTALL
    )
    assert blocks
    names: dict[str, object] = {}
    for code, output in blocks:
        exec(compile(code, f"docs/{page}.md", "exec"), names)
        assert capsys.readouterr().out == output
