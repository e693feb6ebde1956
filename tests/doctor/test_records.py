"""The claims of records/doctor are its raw records."""

import importlib.util
import json

import pytest
from support.paths import ROOT

RECORDS = ROOT / "records" / "doctor"
TEXT = (RECORDS / "README.md").read_text()


def lines(name):
    return [json.loads(line) for line in (RECORDS / name).read_text().splitlines()]


def test_the_table_of_the_bank():
    spec = importlib.util.spec_from_file_location("doctor_records", ROOT / "tools/doctor_records.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert "\n".join(script.table()) in TEXT


def test_the_totals_of_the_bank():
    planted = [record for record in lines("bank.jsonl") if record["fault"] != "healthy"]
    good = sum(record["found"] and record["gone"] for record in planted)
    faults = len({record["fault"] for record in planted})
    assert f"{good} of {len(planted)}: {faults} faults in three families" in TEXT
    assert [record["alarms"] for record in lines("bank.jsonl") if record["fault"] == "healthy"] == [[], [], []]


def test_the_false_alarms_of_the_zoo():
    examined = [record for record in lines("zoo.jsonl") if "alarms" in record]
    alarms = [record["network"] for record in examined if record["alarms"]]
    layers = sum(record["layers"] for record in examined)
    assert f"{len(alarms)} of {len(examined)} networks, {layers:,} BN layers" in TEXT
    assert all(f"`{name}`" in TEXT for name in alarms)


@pytest.mark.parametrize("seed", range(3))
def test_the_case(seed):
    record = json.loads((RECORDS / "case.json").read_text())["seeds"][seed]
    names = ("accuracy of the network", "accuracy of the average", "accuracy after recalibration")
    assert f"| {seed} | " + " | ".join(f"{record[name]:.4f}" for name in names) + " |" in TEXT
    assert [finding[1] for finding in record["findings"][:2]] == ["eval against training", "stale statistics"]
    assert record["healthy after recalibration"]
