"""Wrong options, settings, records and checkpoints of Sec. 4.1: one line each that names file, field and bound."""

import json
import re
from threading import Event

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.paths import ROOT
from support.wrong_files import NOT_JSON, copied, edit_checkpoint, edit_row, edit_settings, fails

import batchnorm as bn
from batchnorm.paper.mnist import sweep
from batchnorm.paper.mnist.config import MnistConfig, config_to_json
from batchnorm.paper.mnist.data import load_mnist
from batchnorm.paper.mnist.experiment import run_mnist
from batchnorm.paper.mnist.records import ArmFields, SweepFields
from batchnorm.paper.training.run import Run
from batchnorm.paper.training.settings import digest, saved_settings

SHORT = MnistConfig(steps=4, eval_every=2, threads=1)
COUNT = "an integer from 1 to 1,000,000,000,000"
NUMBER = "a number from 1e-30 to 1e+30"


def ignore(row):
    """Show no progress."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return a run of both arms with its checkpoints."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    run = Run.create(folder, "mnist", config_to_json(SHORT), digest(SHORT, "mnist"))
    run_mnist(SHORT, load_mnist(), run, ignore, Event())
    return run


@pytest.fixture
def folder(finished, tmp_path):
    """Return the folder of a run that a test may damage."""
    return copied(finished, tmp_path / "run")


@pytest.mark.parametrize(
    ("option", "value", "wanted", "shown"),
    [
        ("steps", "9" * 30, COUNT, "9" * 30),
        ("steps", 0, COUNT, "0"),
        ("batch-size", 1, "an integer from 2 to 1,000,000", "1"),
        ("lr", "nan", NUMBER, "NaN"),
        ("lr", "-inf", NUMBER, "-Infinity"),
        ("std", 0, NUMBER, "0.0"),
        ("seed", 2**64, "an integer from 0 to 9,223,372,036,854,775,807", str(2**64)),
        ("seed", -1, "an integer from 0 to 9,223,372,036,854,775,807", "-1"),
        ("eval-every", -5, COUNT, "-5"),
        ("threads", 100_000, "an integer from 1 to 1,024", "100000"),
    ],
)
def test_an_option_out_of_bounds_is_one_line(tmp_path, option, value, wanted, shown):
    line = fails("mnist", f"--{option}", value, "--out", tmp_path / "run")
    assert line == f"--{option} must be {wanted}; got {shown}"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("steps", "600", COUNT),
        ("steps", None, COUNT),
        ("steps", 600.5, COUNT),
        ("steps", 600.0, COUNT),
        ("steps", [600], COUNT),
        ("steps", {"600": 1}, COUNT),
        ("steps", True, COUNT),
        ("steps", 10**30, COUNT),
        ("batch_size", 0, "an integer from 2 to 1,000,000"),
        ("batch_size", "60", "an integer from 2 to 1,000,000"),
        ("lr", float("nan"), NUMBER),
        ("lr", float("inf"), NUMBER),
        ("lr", "0.1", NUMBER),
        ("lr", True, NUMBER),
        ("std", -0.1, NUMBER),
        ("std", None, NUMBER),
        ("seed", -1, "an integer from 0 to 9,223,372,036,854,775,807"),
        ("seed", 2**63, "an integer from 0 to 9,223,372,036,854,775,807"),
        ("seed", "one", "an integer from 0 to 9,223,372,036,854,775,807"),
        ("eval_every", 0, COUNT),
        ("threads", 0, "an integer from 1 to 1,024"),
        ("threads", 100_000, "an integer from 1 to 1,024"),
        ("data", 5, "a path or null"),
        ("data", ["idx"], "a path or null"),
    ],
)
def test_a_setting_of_a_run_out_of_bounds_is_one_line(folder, name, value, wanted):
    edit_settings(folder, **{name: value})
    got = json.dumps(value)
    assert fails("mnist", "--resume", folder) == f"{folder}/config.json: {name} must be {wanted}; got {got}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": ...}, "has other settings than this version of batchnorm: it lacks 'steps'"),
        ({"color": "red"}, "has other settings than this version of batchnorm: it has 'color' = \"red\""),
        ({"data": "a\0b"}, r".*has neither train-images-idx3-ubyte nor"),
        ({"experiment": ["mnist"]}, r".* is a run of \['mnist'\]; batchnorm mnist resumes its own"),
    ],
)
def test_other_settings_are_one_line(folder, changes, message):
    edit_settings(folder, **changes)
    assert re.match(rf"({folder}/config\.json )?{message}", fails("mnist", "--resume", folder))


@pytest.mark.parametrize("content", [*NOT_JSON, b"[1]", b"7", b"null", b"{}"])
def test_settings_that_are_no_object_are_one_line(folder, content):
    (folder / "config.json").write_bytes(content)
    assert fails("mnist", "--resume", folder).startswith(f"{folder} is not the folder of a run: ")


@pytest.mark.parametrize("changes", [{"seed": 2}, {"lr": 0.2}, {"steps": 6}, {"batch_size": 30}, {"digest": "0"}])
def test_an_edit_that_changes_the_numbers_is_refused(folder, changes):
    kept = json.loads((folder / "config.json").read_text())["digest"]
    edit_settings(folder, **{"digest": kept, **changes})
    line = fails("mnist", "--resume", folder)
    assert line.startswith(f"{folder}/config.json was edited after the run began: its digest ")
    assert line.endswith("Restore steps, batch_size, lr, std, seed, eval_every, or start a new run")


@pytest.mark.parametrize("changes", [{"seed": 2}, {"steps": 6}])
def test_the_checkpoint_shows_an_edit_where_config_json_has_no_digest(folder, changes):
    edit_settings(folder, **changes)
    line = fails("mnist", "--resume", folder)
    assert line.startswith(f"{folder}/checkpoint-plain.pt was written with other settings than config.json has")


@pytest.mark.parametrize("changes", [{"threads": 2}, {"lr": 1e-1}, {}])
def test_what_changes_no_number_may_be_edited(folder, changes):
    saved = json.loads((folder / "config.json").read_text())
    edit_settings(folder, digest=saved["digest"], **changes)
    run, experiment, kept = Run.open(folder)
    config = saved_settings(MnistConfig, kept, run.config, experiment)
    assert run_mnist(config, load_mnist(), run, ignore, Event()) == Run(folder).rows()


def test_a_run_of_0_1_0_without_a_digest_resumes(folder):
    edit_settings(folder)
    for arm in ("plain", "bn"):
        edit_checkpoint(folder / f"checkpoint-{arm}.pt", {"digest": ...})
    run, experiment, saved = Run.open(folder)
    config = saved_settings(MnistConfig, saved, run.config, experiment)
    assert len(run_mnist(config, load_mnist(), run, ignore, Event())) == 6


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b"[1]", " must be a JSON object with step, arm, loss, test_accuracy, p15, p50, p85; got [1]"),
        (b"7", " must be a JSON object with step, arm, loss, test_accuracy, p15, p50, p85; got 7"),
        (b'"bn"', ' must be a JSON object with step, arm, loss, test_accuracy, p15, p50, p85; got "bn"'),
        (b"{}", ": step is missing; wanted an integer from 0 to 1,000,000,000,000"),
        ({"step": ...}, ": step is missing; wanted an integer from 0 to 1,000,000,000,000"),
        ({"arm": ...}, ": arm is missing; wanted one of plain, bn"),
        ({"p50": ...}, ": p50 is missing; wanted a number from -1e+300 to 1e+300 or null"),
        ({"step": "2"}, ': step must be an integer from 0 to 1,000,000,000,000; got "2"'),
        ({"step": -1}, ": step must be an integer from 0 to 1,000,000,000,000; got -1"),
        ({"step": 2.0}, ": step must be an integer from 0 to 1,000,000,000,000; got 2.0"),
        ({"arm": "other"}, ': arm must be one of plain, bn; got "other"'),
        ({"arm": None}, ": arm must be one of plain, bn; got null"),
        ({"loss": "0.5"}, ': loss must be a number from -1e+300 to 1e+300 or null; got "0.5"'),
        ({"loss": float("nan")}, ": loss must be a number from -1e+300 to 1e+300 or null; got NaN"),
        ({"test_accuracy": None}, ": test_accuracy must be a number from 0 to 1; got null"),
        ({"test_accuracy": 98.2}, ": test_accuracy must be a number from 0 to 1; got 98.2"),
        ({"p15": [0.1]}, ": p15 must be a number from -1e+300 to 1e+300 or null; got [0.1]"),
    ],
)
def test_a_row_of_another_kind_is_one_line(folder, row, message):
    edit_row(folder / "metrics.jsonl", 3, row)
    assert fails("mnist", "--resume", folder) == f"{folder}/metrics.jsonl, line 3{message}"


@pytest.mark.parametrize("line", NOT_JSON)
def test_a_row_that_is_no_json_is_one_line(folder, line):
    edit_row(folder / "metrics.jsonl", 2, line)
    assert fails("mnist", "--resume", folder).startswith(f"{folder}/metrics.jsonl, line 2 is damaged; remove that line")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([1, 2], " must hold a dict; got [1, 2]"),
        (torch.ones(2), " must hold a dict; got \"tensor([1., 1.])\""),
        ({"step": ...}, ": step is missing; wanted an integer from 0 to 1,000,000,000,000"),
        ({"step": -1}, ": step must be an integer from 0 to 1,000,000,000,000; got -1"),
        ({"step": "4"}, ': step must be an integer from 0 to 1,000,000,000,000; got "4"'),
        ({"step": torch.tensor(4)}, ': step must be an integer from 0 to 1,000,000,000,000; got "tensor(4)"'),
        ({"diverged": 1}, ": diverged must be true or false; got 1"),
        ({"digest": 5}, ": digest must be a string or null; got 5"),
        ({"model": ...}, ": model must be a dict of tensors; got null"),
        ({"model": [1]}, ": model must be a dict of tensors; got [1]"),
        ({"model": {}}, ": model lacks '0.weight', unlike the network"),
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_kind_is_one_line(folder, state, message):
    edit_checkpoint(folder / "checkpoint-plain.pt", state)
    assert fails("mnist", "--resume", folder).startswith(f"{folder}/checkpoint-plain.pt{message}")


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize(
    ("tensor", "got"),
    [
        (torch.zeros(100, 5), "a tensor (100, 5) of torch.float32"),
        (torch.zeros(100, 784, dtype=torch.int8), "a tensor (100, 784) of torch.int8"),
        (torch.zeros(100, 784).to_sparse(), "a tensor (100, 784) of torch.float32 torch.sparse_coo"),
        ("none", '"none"'),
    ],
)
def test_tensors_of_another_network_are_one_line(folder, tensor, got):
    file = folder / "checkpoint-plain.pt"
    model = torch.load(file, weights_only=True)["model"]
    edit_checkpoint(file, {"model": {**model, "0.weight": tensor}})
    wanted = "a tensor (100, 784) of torch.float32, as in the network"
    assert fails("mnist", "--resume", folder) == f"{file}: model's '0.weight' must be {wanted}; got {got}"


def test_the_checkpoint_of_the_other_arm_is_one_line(folder):
    (folder / "checkpoint-bn.pt").replace(folder / "checkpoint-plain.pt")
    assert "checkpoint-plain.pt: model lacks '0.bias', unlike the network" in fails("mnist", "--resume", folder)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"lr": ...}, ": lr is missing; wanted a number from 1e-30 to 1e+30"),
        ({"seed": "1"}, ': seed must be an integer from 0 to 18,446,744,073,709,551,615; got "1"'),
        ({"std": None}, ": std must be a number from 1e-30 to 1e+30; got null"),
    ],
)
def test_a_row_of_a_sweep_of_another_kind_is_one_line(tmp_path, monkeypatch, row, message):
    monkeypatch.setattr(sweep, "LRS", (0.1,))
    monkeypatch.setattr(sweep, "STDS", (0.1,))
    base = MnistConfig(steps=2, threads=1)
    run = Run.create(tmp_path / "run", "sweep", config_to_json(base), digest(base, "sweep"))
    sweep.run_sweep(base, load_mnist(), run, ignore, Event())
    edit_row(run.metrics, 1, row)
    assert fails("mnist", "--resume", run.folder) == f"{run.metrics}, line 1{message}"


@pytest.mark.parametrize(
    "folder", sorted(path.parent for path in (ROOT / "records/mnist").rglob("config.json")), ids=lambda path: path.name
)
def test_every_committed_run_is_readable(folder):
    run, experiment, saved = Run.open(folder)
    config = saved_settings(MnistConfig, saved, run.config, experiment)
    assert run.rows(ArmFields if experiment == "mnist" else SweepFields)[-1]["step"] == config.steps


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from([*config_to_json(SHORT)]), value=JSON)
def test_any_json_value_is_a_setting_or_an_error_that_names_it(tmp_path, name, value):
    file = tmp_path / "config.json"
    config, message = SHORT, f"{file}: {name} must be "
    try:
        config = saved_settings(MnistConfig, {**config_to_json(SHORT), name: value}, file)
    except bn.BatchNormError as error:
        message = str(error)
    else:
        assert name == "data" or config_to_json(config)[name] == value
        assert type(value) is not bool
    assert message.startswith(f"{file}: {name} must be ")
    assert "\n" not in message
