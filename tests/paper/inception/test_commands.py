"""The commands `inception`, `evaluate` and `report`."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.inception_runs import TINY

from batchnorm.cli import inception_training
from batchnorm.cli.main import main
from batchnorm.paper.images.sources import open_both
from batchnorm.paper.inception.jobs import new_jobs
from batchnorm.paper.training.processes import ALONE


@pytest.mark.parametrize("arguments", [["evaluate", "--data", "fashion"], ["report"]], ids=["evaluate", "report"])
def test_a_command_without_runs_is_an_error(arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["batchnorm", *arguments])
    with pytest.raises(SystemExit, match="batchnorm: name the folder of at least one run"):
        main()


def read_evaluation(run):
    """Return the newest evaluation of the run."""
    return json.loads((run.folder / "evaluations.jsonl").read_text().splitlines()[-1])


@pytest.fixture(scope="module")
def evaluated(tree, finished):
    """Evaluate a run by the command, and return the run."""
    with pytest.MonkeyPatch.context() as patch:
        arguments = ["evaluate", str(finished.folder), "--data", tree, "--workers", "0"]
        patch.setattr(sys, "argv", ["batchnorm", *arguments])
        main()
    return finished


def test_evaluate_says_what_it_does_without_a_terminal(tree, finished, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["batchnorm", "evaluate", str(finished.folder), "--data", tree, "--workers", "0"])
    main()
    said = capsys.readouterr().out
    assert "with every BN folded away" in said
    assert "50 of 50 images" in said


def test_evaluate_appends_its_accuracy_to_the_run(evaluated):
    assert read_evaluation(evaluated)["top1"] == evaluated.rows()[-1]["top1"]


def test_report_writes_figures_and_a_page(tree, evaluated, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["batchnorm", "report", str(evaluated.folder), "--out", str(tmp_path / "report")])
    main()
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"figure2.png", "figure2.svg", "report.html"}
    page = (tmp_path / "report" / "report.html").read_text()
    assert "BN-Inception multicrop" in page
    assert f"{1 - read_evaluation(evaluated)['top1']:.2%}" in page
    assert Path(tree).parent.name not in page  # A page to be shared names no path of this machine.


def test_inception_opens_the_images_once_for_a_group(tree, tmp_path, monkeypatch):
    opened, trained = [], []
    monkeypatch.setattr(inception_training, "open_both", lambda *where: opened.append(where) or open_both(*where))
    monkeypatch.setattr(inception_training, "run_variant", lambda trainer, *_: trained.append(trainer.variant.name))
    jobs = new_jobs("all", replace(TINY, data=tree), tmp_path / "all")
    assert inception_training.train_jobs(jobs, ALONE)
    assert trained == [job.variant.name for job in jobs]
    assert len(opened) == 1
