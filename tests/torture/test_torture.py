"""Every write of a short run fails, or the run is killed there; the next start gives the same records to the bit.

This is a sample of the calls. `make torture` takes all of them.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT
from torture.faults import Call
from torture.order import disorder


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="needs Linux's LD_PRELOAD and a compiler")
def test_a_run_survives_a_sample_of_all_faults():
    done = subprocess.run(
        [sys.executable, "-m", "torture", "--sample", "8"],
        env=os.environ | {"PYTHONPATH": str(ROOT / "tests")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "56 cases, 0 failed" in done.stdout


RUN = Path("run")
FILE, PARTIAL, RECORDS = RUN / "checkpoint-bn.pt", RUN / "checkpoint-bn.partial", RUN / "metrics.jsonl"


def calls(*names):
    """Return calls of these names on these paths."""
    return [Call(number, name, 0, 0, path, to) for number, (name, path, to) in enumerate(names, 1)]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ([("write", PARTIAL, RUN), ("rename", PARTIAL, FILE)], "call 2 renames checkpoint-bn.partial before"),
        (
            [("write", RECORDS, RUN), ("write", PARTIAL, RUN), ("sync", PARTIAL, RUN), ("rename", PARTIAL, FILE)],
            "call 4 names checkpoint-bn.pt before its records",
        ),
    ],
)
def test_calls_in_a_dangerous_order_are_found(made, message):
    assert any(message in found for found in disorder(calls(*made)))


def test_a_rename_without_a_sync_of_its_folder_is_found(tmp_path):
    rename = ("rename", tmp_path / "a", tmp_path / "b")
    assert disorder(calls(rename)) == [f"{tmp_path} is not on the disk at the end"]
    assert disorder(calls(rename, ("sync", tmp_path, tmp_path))) == []
