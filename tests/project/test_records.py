"""The tables of the committed records are what their raw rows say."""

import importlib.util
import json
from pathlib import Path

import pytest
from support.paths import ROOT

from batchnorm.paper.trial.prepare import reopen
from batchnorm.paper.trial.records import TrialFields
from batchnorm.paper.trial.tables import trial_table
from batchnorm.paper.trial.verdict import judge


def script(path):
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def summary():
    return script("tools/summarize_mnist.py")


@pytest.mark.parametrize("table", ["accuracy", "plain", "bn"])
def test_mnist_tables(summary, table):
    text = (ROOT / "records/mnist/README.md").read_text()
    assert "\n".join(summary.tables()[table]) in text


def test_the_kernels_table(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # as for a script that is run from there
    records = {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "records/kernels").glob("N*.json"))}
    assert len(records) == 5
    plot, text = script("benchmarks/plot_batch_norm.py"), (ROOT / "records/kernels/README.md").read_text()
    assert plot.table(records) in text
    assert plot.table_of_followers(ROOT / "records/kernels/then") in text


def test_the_zoos_claims_are_its_records():
    zoo = ROOT / "records/zoo"
    fold, fuse = (json.loads((zoo / name).read_text()) for name in ("results.json", "fuse.json"))
    for records in (fold["records"], fuse["records"]):
        assert [r["network"] for r in records] == (ROOT / "benchmarks/zoo_networks.txt").read_text().split()
    claims = [f"{fold['totals'][key]:,}" for key in ("networks", "layers", "folded", "free_of_batch_norm", "fx_folded")]
    claims += [f"{fold['totals'][key]:.1%}".replace("%", " %") for key in ("share", "fx_share")]
    claims += [f"{fuse['totals'][key]:,}" for key in ("fused", "layers")]
    text = (zoo / "README.md").read_text()
    assert [claim for claim in claims if claim not in text] == []
    assert sum(r["folded"] for r in fold["records"]) == fold["totals"]["folded"]
    assert sum(r["fused"] for r in fuse["records"]) == fuse["totals"]["fused"]


def test_mnist_bn_is_ahead_at_every_measurement_of_every_seed(summary):
    for seed in summary.SEEDS:
        rows = summary.Run(summary.RECORDS / f"seed-{seed}").rows()
        accuracy = {(row["step"], row["arm"]): row["test_accuracy"] for row in rows if row["step"] > 0}
        ahead = [accuracy[step, "bn"] > accuracy[step, "plain"] for step, arm in accuracy if arm == "bn"]
        assert len(ahead) == 500
        assert all(ahead)


@pytest.mark.parametrize("name", ["sigmoid", "relu", "sigmoid-5000", "relu-2000"])
def test_the_trials_verdicts_and_tables(name):
    run, settings = reopen(ROOT / "records/trial" / name)
    found = judge(run.rows(TrialFields), settings)
    text = (ROOT / "records/trial/README.md").read_text()
    assert found.sentence in text
    for line in trial_table(found.rows, found.level, settings.score):
        assert f"| {' | '.join(line[:3])} |" in text


@pytest.mark.parametrize(
    ("path", "name"), [("benchmarks/bench_statistics.py", "cost"), ("tools/padded_sequences.py", "padding")]
)
def test_the_tables_of_statistics(monkeypatch, path, name):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # as for a script that is run from there
    found = json.loads((ROOT / f"records/statistics/{name}.json").read_text())
    table = "\n".join(script(path).table(found["records" if name == "cost" else "rows"]))
    assert table in (ROOT / "records/statistics/README.md").read_text()


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_the_tables_of_networks(monkeypatch, layout):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    record = json.loads((ROOT / f"records/networks/{layout}-float32.json").read_text())
    assert script("benchmarks/plot_networks.py").table(record) in (ROOT / "records/networks/README.md").read_text()


@pytest.mark.parametrize("part", ["memory", "script"])
def test_the_memory_of_networks_and_what_two_lines_give(part):
    lines = (ROOT / "records/networks/README.md").read_text().splitlines()
    for name, found in json.loads((ROOT / f"records/networks/{part}.json").read_text())["networks"].items():
        ratio = found["plain_over_changed"] if part == "script" else found["changed"][0] / found["plain"][0]
        assert any(line.startswith(f"| {name} |") and line.endswith(f"| {ratio:.2f} |") for line in lines)
