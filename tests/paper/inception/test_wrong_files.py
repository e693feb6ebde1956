"""Wrong options, settings, records and checkpoints of Sec. 4.2: one line each that names file, field and bound."""

import json

import pytest
import torch
from support.inception_runs import options
from support.paths import ROOT
from support.wrong_files import NOT_JSON, copied, edit_checkpoint, edit_row, edit_settings, fails

from batchnorm.paper.inception.comparison import read_records
from batchnorm.paper.inception.jobs import resumed_jobs

COUNT = "an integer from 1 to 1,000,000,000,000"
NUMBER = "a number from 1e-30 to 1e+30"
ROW = "step, loss, diverged, epoch, lr, waited, top1, top5"


@pytest.fixture
def folder(finished, tmp_path):
    """Return the folder of a run that a test may damage."""
    return copied(finished, tmp_path / "run")


def commands(folder, tree):
    """Return the command lines that read a run's settings."""
    return [
        ["inception", "--resume", folder],
        ["evaluate", folder, "--data", tree, "--workers", 0],
        ["report", folder, "--out", folder / "report"],
    ]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("steps", "9" * 30, f"--steps must be {COUNT}; got {'9' * 30}"),
        ("width", 1e9, "--width must be a number from 0.001 to 16; got 1000000000.0"),
        ("size", 100_000, "--size must be an integer from 8 to 2,048; got 100000"),
        ("threads", 100_000, "--threads must be an integer from 1 to 1,024; got 100000"),
        ("workers", -1, "--workers must be an integer from 0 to 1,024; got -1"),
        ("seed", 2**70, f"--seed must be an integer from 0 to 9,223,372,036,854,775,807; got {2**70}"),
        ("lr", "nan", f"--lr must be {NUMBER}; got NaN"),
        ("decay-every", 0, "--decay-every must be a number from 1e-06 to 1e+09; got 0.0"),
        ("checkpoint-minutes", "inf", "--checkpoint-minutes must be a number from 1e-09 to 1e+09; got Infinity"),
        ("max-damaged", -1, "--max-damaged must be an integer from 0 to 1,000,000,000,000; got -1"),
    ],
)
def test_an_option_out_of_bounds_is_one_line(tree, tmp_path, option, value, message):
    assert fails("inception", "bn-x5", *options(tree, tmp_path / "run"), f"--{option}", value) == message
    assert not (tmp_path / "run").exists()


def test_a_module_that_comes_twice_is_one_line(tree, tmp_path):
    given = [part for part in options(tree, tmp_path / "run") if part != "5b"]
    given.insert(given.index("3c"), "3c")
    assert fails("inception", "bn-x5", *given) == "modules: each at most once; got 3c 3c"


def test_evaluate_takes_no_negative_workers(finished, tree):
    line = fails("evaluate", finished.folder, "--data", tree, "--workers", -1)
    assert line == "--workers must be an integer from 0 to 1,024; got -1"


@pytest.mark.parametrize("command", range(3), ids=["resume", "evaluate", "report"])
@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("steps", "600", COUNT),
        ("steps", None, COUNT),
        ("steps", 600.5, COUNT),
        ("steps", [600], COUNT),
        ("batch_size", 0, "an integer from 2 to 1,000,000"),
        ("lr", float("nan"), NUMBER),
        ("lr", "0.04", NUMBER),
        ("workers", -1, "an integer from 0 to 1,024 or null"),
        ("workers", True, "an integer from 0 to 1,024 or null"),
        ("threads", 10**6, "an integer from 1 to 1,024 or null"),
        ("precision", "float16", "one of float32, bfloat16"),
        ("channels_last", 1, "true or false"),
        ("compile", None, "true or false"),
        ("seed", 2**64, "an integer from 0 to 9,223,372,036,854,775,807"),
        ("size", 7, "an integer from 8 to 2,048"),
        ("width", 1e9, "a number from 0.001 to 16"),
        ("modules", "3c", "a list, each a string"),
        ("modules", ["3c", 5], "a list, each a string"),
        ("data", 7, "a string"),
        ("checkpoint_minutes", 0, "a number from 1e-09 to 1e+09"),
    ],
)
def test_a_setting_of_a_run_out_of_bounds_is_one_line(folder, tree, command, name, value, wanted):
    edit_settings(folder, **{name: value})
    line = fails(*commands(folder, tree)[command])
    assert line == f"{folder}/config.json: {name} must be {wanted}; got {json.dumps(value)}"


@pytest.mark.parametrize("command", range(3), ids=["resume", "evaluate", "report"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modules": ["3c", "3c"]}, ": modules: each at most once; got 3c 3c"),
        ({"modules": ["9z"]}, ": modules: '9z' is not one of 3a, 3b"),
        ({"width": 0.004}, ": width 0.004 leaves a layer of"),
        ({"variant": "resnet"}, ": variant must be one of inception, bn-baseline"),
        ({"variant": ["bn-x5"]}, ": variant must be one of inception, bn-baseline"),
        ({"variant": ...}, ": variant must be one of inception, bn-baseline"),
        ({"data": ""}, ': data must be a folder, or one of fashion, cifar10; got ""'),
        ({"seed": ...}, " has other settings than this version of batchnorm: it lacks 'seed'"),
        ({"color": 1}, " has other settings than this version of batchnorm: it has 'color' = 1"),
    ],
)
def test_other_settings_are_one_line(folder, tree, command, changes, message):
    edit_settings(folder, **changes)
    assert fails(*commands(folder, tree)[command]).startswith(f"{folder}/config.json{message}")


@pytest.mark.parametrize("command", range(3), ids=["resume", "evaluate", "report"])
@pytest.mark.parametrize("changes", [{"seed": 2}, {"lr": 0.03}, {"steps": 13}, {"variant": "bn-x30"}])
def test_an_edit_that_changes_the_numbers_is_refused(folder, tree, command, changes):
    kept = json.loads((folder / "config.json").read_text())["digest"]
    edit_settings(folder, digest=kept, **changes)
    line = fails(*commands(folder, tree)[command])
    assert line.startswith(f"{folder}/config.json was edited after the run began: its digest ")


@pytest.mark.parametrize("command", range(2), ids=["resume", "evaluate"])
def test_the_checkpoint_shows_an_edit_where_config_json_has_no_digest(folder, tree, command):
    edit_settings(folder, seed=2)
    line = fails(*commands(folder, tree)[command])
    assert line.startswith(f"{folder}/checkpoint-training.pt was written with other settings than config.json has")


def test_the_number_of_workers_and_threads_may_be_edited(folder):
    kept = json.loads((folder / "config.json").read_text())["digest"]
    edit_settings(folder, digest=kept, workers=3, threads=2, data="/elsewhere", max_damaged=7, checkpoint_minutes=9)
    (job,) = resumed_jobs(folder)
    assert (job.config.workers, job.config.data) == (3, "/elsewhere")


@pytest.mark.parametrize("command", [0, 2], ids=["resume", "report"])
@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b"[1]", f" must be a JSON object with {ROW}; got [1]"),
        (b"7", f" must be a JSON object with {ROW}; got 7"),
        ({"step": ...}, ": step is missing; wanted an integer from 0 to 1,000,000,000,000"),
        ({"step": "6"}, ': step must be an integer from 0 to 1,000,000,000,000; got "6"'),
        ({"loss": "nan"}, ': loss must be a number from -1e+300 to 1e+300 or null; got "nan"'),
        ({"top1": "0.5"}, ': top1 must be a number from 0 to 1 or null; got "0.5"'),
        ({"top1": 50}, ": top1 must be a number from 0 to 1 or null; got 50"),
        ({"diverged": "yes"}, ': diverged must be true or false; got "yes"'),
        ({"epoch": None}, ": epoch must be a number from 0 to 1e+12; got null"),
        *((line, " is damaged; remove that line: ") for line in NOT_JSON),
    ],
)
def test_a_row_of_another_kind_is_one_line(folder, tree, command, row, message):
    edit_row(folder / "metrics.jsonl", 2, row)
    assert fails(*commands(folder, tree)[command]).startswith(f"{folder}/metrics.jsonl, line 2{message}")


EVALUATION = {"name": "bn-x5", "runs": ["a, seed 1"], "crops": 1, "size": 28, "folded": True, "images": 5}
SCORES = {"top1": 0.5, "top5": 0.9}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([EVALUATION], " must be a JSON object with name, runs, crops, size, folded, images, top1, top5; got [{"),
        (EVALUATION, ": top1 is missing; wanted a number from 0 to 1"),
        ({**EVALUATION, **SCORES, "runs": "a"}, ': runs must be a list, each a string; got "a"'),
        ({**EVALUATION, **SCORES, "runs": [1]}, ": runs must be a list, each a string; got [1]"),
        ({**EVALUATION, **SCORES, "top5": "0.9"}, ': top5 must be a number from 0 to 1; got "0.9"'),
        ({**EVALUATION, **SCORES, "crops": 0}, f": crops must be {COUNT}; got 0"),
    ],
)
def test_an_evaluation_of_another_kind_is_one_line(folder, row, message):
    file = folder / "evaluations.jsonl"
    file.write_text(json.dumps(row) + "\n")
    line = fails("report", folder, "--out", folder / "report")
    assert line.startswith(f"{file}, line 1{message}")


def test_records_without_any_accuracy_are_one_line(folder):
    (folder / "metrics.jsonl").write_text('{"step": 3, "loss": null, "diverged": true}\n')
    line = fails("report", folder, "--out", folder / "report")
    assert line == f"{folder}/metrics.jsonl has no accuracy, top1, in any row; train it first"


@pytest.mark.parametrize("command", range(2), ids=["resume", "evaluate"])
@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([1], " must hold a dict; got [1]"),
        ({"step": ...}, ": step is missing; wanted an integer from 0"),
        ({"step": -3}, ": step must be an integer from 0 to 1,000,000,000,000; got -3"),
        ({"classes": ...}, ": classes is missing; wanted a list, each a string"),
        ({"classes": [1, 2]}, ": classes must be a list, each a string; got [1, 2]"),
        ({"channels": 0}, ": channels must be an integer from 1 to 1,024; got 0"),
        ({"channels": "3"}, ': channels must be an integer from 1 to 1,024; got "3"'),
        ({"processes": 0}, ": processes must be an integer from 1 to 1,000,000; got 0"),
        ({"model": ...}, ": model must be a dict of tensors; got null"),
        ({"model": {"weight": torch.ones(1)}}, ": model lacks "),
    ],
)
def test_a_checkpoint_of_another_kind_is_one_line(folder, tree, command, state, message):
    edit_checkpoint(folder / "checkpoint-training.pt", state)
    line = fails(*commands(folder, tree)[command])
    assert line.startswith(f"{folder}/checkpoint-training.pt{message}")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"classes": ["cat", "dog"]}, "classes and channels must be those of the training images"),
        ({"optimizer": ...}, "optimizer must be the state of SGD"),
        ({"optimizer": {"state": [1]}}, "optimizer must be the state of SGD"),
        ({"optimizer": {"state": {0: {"momentum_buffer": torch.ones(1)}}}}, "optimizer's momentum of parameter 0 does"),
        ({"optimizer": {"state": {9999: {}}}}, "optimizer's momentum of parameter 9999 does not fit the network"),
    ],
)
def test_a_state_that_cannot_go_on_is_one_line(folder, tree, state, message):
    edit_checkpoint(folder / "checkpoint-training.pt", state)
    line = fails(*commands(folder, tree)[0])
    assert line.startswith(f"{folder}/checkpoint-training.pt: {message}")


@pytest.mark.parametrize(("number", "step"), [(1, 0), (2, 6), (3, 12)])
def test_a_row_that_is_missing_before_the_checkpoint_is_one_line(folder, number, step):
    file = folder / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[: number - 1] + lines[number:]))
    assert fails("inception", "--resume", folder) == (
        f"{file} lacks the row of step {step}, and the checkpoint is at step 12; "
        f"remove {folder}/checkpoint-training.pt and checkpoint-training.previous.pt to train from the start"
    )


def test_the_last_row_is_wanted_too_if_it_is_no_multiple(folder):
    edit_settings(folder, steps=12, eval_every=5)
    for number, step in enumerate((0, 5, 10), 1):
        edit_row(folder / "metrics.jsonl", number, {"step": step})
    edit_checkpoint(folder / "checkpoint-training.pt", {"digest": ...})
    assert " lacks the row of step 12, " in fails("inception", "--resume", folder)


def test_every_committed_run_is_readable():
    folders = sorted({path.parent.parent for path in (ROOT / "records/inception-fashion").rglob("metrics.jsonl")})
    assert len(read_records(folders)) == len([*(ROOT / "records/inception-fashion").rglob("config.json")])
