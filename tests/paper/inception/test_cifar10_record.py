"""The tables of records/inception-cifar10 are what its raw rows say, and the rows are those of the experiment."""

import importlib.util
import json

import pytest
from support.paths import ROOT

RECORDS = ROOT / "records" / "inception-cifar10"
RUNS = sorted(path.parent for path in RECORDS.rglob("config.json") if "shift" not in path.parts)


@pytest.fixture(scope="module")
def summary():
    spec = importlib.util.spec_from_file_location("summary", ROOT / "tools" / "summarize_inception_cifar10.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_those_of_the_raw_rows(summary):
    text = (RECORDS / "README.md").read_text()
    assert len(summary.BLOCK.findall(text)) >= 3
    assert summary.filled(text) == text


@pytest.mark.parametrize("run", RUNS, ids=lambda run: str(run.relative_to(RECORDS)))
def test_a_run_is_whole_and_its_decays_fit_its_length(run):
    config = json.loads((run / "config.json").read_text())
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last.get("diverged") or last["step"] == config["steps"]
    assert config["steps"] == int(run.relative_to(RECORDS).parts[0])
    # 16 decays of the plain network's rate over the run, in epochs of 50,000 images.
    assert config["decay_every"] == pytest.approx(config["steps"] * 32 / 50_000 / 16)
    assert "/" not in config["data"]  # no path of a machine
