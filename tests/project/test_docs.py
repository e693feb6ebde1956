"""The code in docs/ runs, from top to bottom, and prints what it says. Older pages have tests beside their code."""

import re

import pytest
from support.paths import ROOT

PAGES = [
    "index",
    "index.zh-CN",
    "kernels",
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
        # onnxscript 0.6.2 prints a line of its own.
        printed = re.sub(r"^Applied .* rewrite rules\.\n", "", capsys.readouterr().out, flags=re.M)
        assert printed == output


@pytest.mark.parametrize("page", sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")))
def test_links_lead_to_files(page):
    """On a disk too: the site resolves them anew (tools/site_files.py)."""
    prose = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)#:\s]+)[)#]", prose)
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []
