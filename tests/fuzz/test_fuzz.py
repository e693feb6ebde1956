"""Each input of the corpus, which `make fuzz` found or a seed wrote, is read or refused by an error of the project."""

import sys
import time

import pytest
from fuzz.__main__ import main
from fuzz.engine import CORPUS, Finds
from fuzz.keep import keep
from fuzz.mutations import FORMS, mutate
from fuzz.readers import READERS, is_read
from fuzz.seeds import all_seeds

INPUTS = sorted(path for path in CORPUS.rglob("*") if path.is_file())


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_an_input_is_read_or_refused(path, tmp_path):
    read = READERS[path.parent.name].prepare(tmp_path)
    began = time.monotonic()
    done = is_read(read, path.read_bytes())
    assert time.monotonic() - began < 10
    assert done or not path.name.startswith("whole")


def test_every_seed_is_in_the_corpus():
    assert all_seeds().keys() == READERS.keys() == {path.parent.name for path in INPUTS}
    for reader, seeds in all_seeds().items():
        assert {path.name for path in INPUTS if path.parent.name == reader} >= seeds.keys()
    assert sum(path.stat().st_size for path in INPUTS) < 300_000


def broken(_):
    """Prepare a reader with a bug."""

    def read(content):
        if content == b"bug":
            raise KeyError("bug")

    return read


def test_an_error_that_is_not_the_projects_is_a_find(tmp_path):
    read, finds = broken(tmp_path), Finds("broken", tmp_path)
    assert is_read(read, b"no bug")
    with pytest.raises(KeyError, match="bug") as raised:
        is_read(read, b"bug")
    finds.add(raised.value, b"bug")
    finds.add(raised.value, b"a longer input of the same bug")
    (file,) = (path for path in tmp_path.iterdir() if path.suffix != ".txt")
    assert file.name.startswith("broken-KeyError-test_fuzz-")
    assert file.read_bytes() == b"bug"
    assert "KeyError: 'bug'" in file.with_name(f"{file.name}.txt").read_text()


@pytest.mark.parametrize("reader", READERS)
def test_a_mutation_keeps_the_form(reader, tmp_path):
    """Change nothing within the form of a whole seed: the checksums and lengths are still right."""
    form, most = READERS[reader].form, READERS[reader].most
    read = READERS[reader].prepare(tmp_path)
    for path in (CORPUS / reader).glob("whole*"):
        if form == "json":
            changed = {mutate(form, path.read_bytes(), most, seed, lambda content, _: content) for seed in range(20)}
            assert len(changed) > 2
        else:
            kept = [FORMS[form](path.read_bytes(), most, lambda content, _: content) for _ in range(5)]
            assert any(is_read(read, content) for content in kept)


def test_only_inputs_that_reach_new_lines_are_kept(tmp_path, monkeypatch):
    found, corpus = tmp_path / "found", tmp_path / "corpus"
    for folder in (found, corpus / "idx"):
        folder.mkdir(parents=True)
    (corpus / "idx" / "whole").write_bytes((CORPUS / "idx" / "whole").read_bytes())
    (found / "same").write_bytes((CORPUS / "idx" / "whole").read_bytes())
    (found / "short").write_bytes(b"\0\0\x08\x01\0\0\0\x05")
    (found / "shorter").write_bytes(b"\0\0\x08\x01\0\0\0\x04")
    monkeypatch.setattr("fuzz.keep.CORPUS", corpus)
    assert keep("idx", found) == 1


def test_without_atheris_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["fuzz", "idx"])
    monkeypatch.setattr("fuzz.__main__.find_spec", lambda _: None)
    with pytest.raises(SystemExit, match=r"^fuzz: fuzzing needs atheris: pip install 'batchnorm\[fuzz\]'$"):
        main()


@pytest.mark.parametrize(
    ("runs", "status", "said"),
    [
        ([(0, 7)], 0, "label: 7 executions"),
        ([(77, 5), (0, 7)], 1, "label: 12 executions"),  # a crash, then the rest of the time
        ([(1, 0)], 1, "  label ended before its first mutation, with status 1: see "),
    ],
)
def test_the_command_counts_and_goes_on_after_a_crash(tmp_path, monkeypatch, capsys, runs, status, said):
    def run(name, out, log, seconds):
        assert log.exists()
        assert 0 < seconds <= 60
        if runs[0][0] == 77:
            (out / "finds" / f"{name}-crash-1").write_bytes(b"input")
        return runs.pop(0)

    monkeypatch.setattr("fuzz.__main__._run", run)
    monkeypatch.setattr("fuzz.__main__.find_spec", lambda _: "atheris")
    monkeypatch.setattr(sys, "argv", ["fuzz", "label", "--out", str(tmp_path)])
    assert main() == status
    assert not runs
    printed = capsys.readouterr().out
    assert said in printed
    assert ("label-crash-1\n" in printed) == ("12" in said)
