"""The package's names are imported when they are first used, and are the same objects as in their modules."""

import ast
import copy
import pickle
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest
from support.interpreter import python
from support.paths import ROOT

import batchnorm as bn

PACKAGE = ROOT / "src" / "batchnorm"
TABLE = bn._MODULES  # pyright: ignore[reportAttributeAccessIssue]: private, so the stub lacks it


def stub():
    """Return the module of each name that the stub imports."""
    found = {}
    for node in ast.parse((PACKAGE / "__init__.pyi").read_text()).body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                assert alias.asname == alias.name, "a stub exports a name only by `as`"
                found[alias.name] = node.module or alias.name
    return found


def test_the_table_the_stub_and_all_have_the_same_names():
    assert stub() == TABLE
    assert sorted(bn.__all__) == sorted(TABLE)


@pytest.mark.parametrize("name", bn.__all__)
def test_a_public_name_is_the_object_of_its_module(name):
    module = import_module(f"batchnorm.{TABLE[name]}")
    want = module if name == TABLE[name] else getattr(module, name)
    assert getattr(bn, name) is want
    assert getattr(want, "__module__", module.__name__) == module.__name__  # the table names the file itself
    assert vars(bn)[name] is want  # the second use costs a look-up in a dict


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"^module 'batchnorm' has no attribute 'Fold'$"):
        bn.Fold  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
    assert not hasattr(bn, "accelerate")
    with pytest.raises(ImportError, match="cannot import name 'Fold' from 'batchnorm'"):
        exec("from batchnorm import Fold", {})


def test_dir_lists_the_names_before_they_are_used():
    code = "import batchnorm as bn; assert 'fold' not in vars(bn); print(*dir(bn))"
    listed = set(python(code).stdout.split())
    assert listed >= {*bn.__all__, "__version__"}


def test_star_imports_every_public_name():
    names = {}
    exec("from batchnorm import *", names)
    assert names.keys() - {"__builtins__"} == set(bn.__all__)


def test_importing_the_package_imports_nothing_heavy():
    done = python("import batchnorm; print(batchnorm.__version__)", missing=["torch", "numpy"])
    assert (done.stdout, done.stderr) == (f"{version('batchnorm')}\n", "")


def test_the_library_needs_torch_and_numpy_alone():
    done = python("from batchnorm import *", missing=["tyro", "rich", "matplotlib", "torchvision", "PIL"])
    assert done.stderr == ""


def test_layers_pickle_and_copy_into_an_interpreter_that_did_not_import_them(tmp_path):
    layer = bn.BatchNorm2d(3, activation="relu")
    assert type(copy.deepcopy(layer)) is bn.BatchNorm2d
    Path(tmp_path / "layer.pkl").write_bytes(pickle.dumps(layer))
    code = "import pickle, sys; print(repr(pickle.load(open(sys.argv[1], 'rb'))))"
    assert python(code, tmp_path / "layer.pkl").stdout == f"{layer!r}\n"


def test_a_compiled_function_may_be_the_first_to_use_a_name():
    code = """
import torch, batchnorm as bn
assert "functional" not in vars(bn)
norm = lambda x: bn.functional.batch_norm(x, None, None, training=True)
x = torch.arange(12.0).reshape(4, 3)
torch.testing.assert_close(torch.compile(norm, fullgraph=True, backend="eager")(x), norm(x))
"""
    assert python(code).stderr == ""
