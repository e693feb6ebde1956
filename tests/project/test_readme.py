"""The code of both READMEs runs and prints what it says, their links lead somewhere, their make targets exist."""

import re

import pytest
from support.paths import ROOT

README = (ROOT / "README.md").read_text()
PAGES = [README, (ROOT / "README.zh-CN.md").read_text()]
EXAMPLES = re.findall(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", "".join(PAGES), re.DOTALL)


@pytest.mark.parametrize(("code", "output"), EXAMPLES)
def test_examples_run_and_print_what_is_shown(code, output, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out == output


def test_one_example_shows_its_output():
    assert any(output for _, output in EXAMPLES)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)]+)\)", "".join(PAGES)))))
def test_links_lead_to_files_and_headings(target):
    path, _, heading = target.partition("#")
    if target.startswith("https://"):
        return
    page = ROOT / path if path else ROOT / "README.md"
    assert page.exists()
    if heading:
        headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
        assert heading in {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in headings}


def test_make_targets_exist():
    targets = set(re.findall(r"^make ([a-z]+)", "\n".join(PAGES), re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text()
    assert targets
    assert all(f"\n{target}:" in makefile for target in targets)
