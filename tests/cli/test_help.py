"""Help and --version: they explain every option, and need neither torch nor the packages that the work needs."""

import re
from dataclasses import fields
from typing import get_args

import pytest
import torch
from support.interpreter import batchnorm, python

import batchnorm as bn
from batchnorm.cli.extras import EXTRAS
from batchnorm.cli.main import COMMANDS
from batchnorm.paper.inception.config import InceptionConfig, VariantName
from batchnorm.paper.inception.shift.config import ShiftConfig
from batchnorm.paper.mnist.config import MnistConfig
from batchnorm.paper.trial.config import TrialConfig

HEAVY = ["torch", "numpy", *(package for package in EXTRAS if package != "tyro")]
OPTIONS = {
    "mnist": ["out", "resume", "sweep", *(field.name for field in fields(MnistConfig))],
    "inception": ["small", "out", "resume", *(field.name for field in fields(InceptionConfig))],
    "evaluate": ["data", "crops", "fold", "workers"],
    "report": ["out"],
    "shift": ["out", "resume", *(field.name for field in fields(ShiftConfig))],
    "fold": ["input", "weights", "out"],
    "insert": ["input", "weights", "where", "remove", "data", "batches", "out"],
    "recalibrate": ["data", "weights", "batches", "estimator", "out"],
    "doctor": ["data", "weights", "batches", "loss", "eval_data", "html"],
    "trial": ["data", "eval_data", "loss", "metric", "out", "resume", *(field.name for field in fields(TrialConfig))],
}


def options(text):
    """Return the part of a help text that explains the options, in one line, without the frames that tyro draws."""
    return re.sub(r"[\s│]+", " ", text.partition("─ options ─")[2])


@pytest.fixture(scope="module")
def helps():
    """Return the help of every command, from interpreters without the heavy packages."""
    done = {name: batchnorm(name, "--help", missing=HEAVY) for name in COMMANDS}
    assert [(each.returncode, each.stderr) for each in done.values()] == [(0, "")] * len(COMMANDS)
    return {name: each.stdout for name, each in done.items()}


def test_the_table_names_every_command():
    assert tuple(OPTIONS) == COMMANDS


@pytest.mark.parametrize(("name", "option"), [(name, option) for name in OPTIONS for option in OPTIONS[name]])
def test_help_explains_every_option(helps, name, option):
    option = option.replace("_", "-")
    found = re.search(rf" --{option},? ((?:(?!\(default: ).)*?)\((?:default: |required\))", options(helps[name]))
    assert found
    assert len(re.findall(r" [a-z]+\b", found[1])) >= 2  # words, which no metavar such as PATH has


@pytest.mark.parametrize("name", COMMANDS)
def test_no_option_offers_none_as_a_value(helps, name):
    assert "{None" not in helps[name]


@pytest.mark.parametrize("field", fields(MnistConfig), ids=lambda field: field.name)
def test_help_shows_the_defaults(helps, field):
    explained = re.search(rf" --{field.name.replace('_', '-')} .*?\(default: (.*?)\)", options(helps["mnist"]))
    assert explained
    assert explained[1] == str(field.default)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_examples(helps, name):
    assert re.search(rf"^    (torchrun .* -m )?batchnorm {name} ", helps[name], re.MULTILINE)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_name_options_that_exist(helps, name):
    examples = re.findall(rf"^    batchnorm {name} (.*)$", helps[name], re.MULTILINE)
    used = {option for example in examples for option in re.findall(r"--([a-z-]+)", example)}
    assert used <= {option.replace("_", "-") for option in OPTIONS[name]}


def test_the_help_of_inception_lists_every_variant(helps):
    assert all(name in re.sub(r"[\s│]+", "", helps["inception"]) for name in get_args(VariantName))


def test_the_overview_has_a_line_for_each_command():
    done = batchnorm("--help", missing=HEAVY)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.findall(r"• (\w+) +[A-Z]\w+ ", done.stdout) == list(COMMANDS)
    assert "runs/" not in done.stdout  # the examples are in the help of each command


def test_the_version_is_the_packages_and_torchs():
    done = batchnorm("--version", missing=["numpy", *EXTRAS])
    public = torch.__version__.partition("+")[0]
    # The metadata may lack the local part of torch's version, such as +cu130.
    assert done.stdout.strip() in {f"batchnorm {bn.__version__}, torch {v}" for v in (public, torch.__version__)}
    assert done.stderr == ""


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_and_version_do_not_import_what_is_installed(arguments):
    code = """
import atexit
atexit.register(lambda: print(sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr))
from batchnorm.cli.main import main
main()
"""
    imported = python(code, *arguments).stderr
    assert "'batchnorm'" in imported
    assert [name for name in HEAVY if f"'{name}'" in imported] == []
