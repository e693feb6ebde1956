"""The order of the wings: a module imports from its own wing and from the wings above it, and never in a circle."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from support.paths import ROOT

SOURCE = ROOT / "src" / "batchnorm"
# The one list. CONTRIBUTING.md has the map of it.
WINGS = [
    "torch_private",
    "errors",
    "escape",
    "files",
    "atomic",
    "moments",
    "memory",
    "kernels",
    "functional",
    "layers",
    "graph",
    "algorithm2",
    "statistics",
    "page",
    "diagnosis",
    "integrations",
    "paper.training",
    "paper.images",
    "paper.mnist",
    "paper.inception",
    "paper.show",
    "paper.trial",
    "cli",
]
ENTRANCES = {"", "__main__", "paper"}  # the package itself names what is public


def name_of(path: Path) -> str:
    name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    return "" if name == "__init__" else name.removesuffix(".__init__")


MODULES = {name_of(path): path for path in sorted(SOURCE.rglob("*.py"))}


def wing_of(module: str) -> int:
    found = [number for number, wing in enumerate(WINGS) if f"{module}.".startswith(f"{wing}.")]
    assert found, f"{module or 'the package'} belongs to no wing; give it one in WINGS"
    return found[0]


def imports(module: str) -> set[str]:
    """Return the modules of this package that a module imports, at any depth."""
    path = MODULES[module]
    package = path.relative_to(SOURCE).parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert all(alias.name.split(".")[0] != "batchnorm" for alias in node.names), "import it relatively"
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert (node.module or "").split(".")[0] != "batchnorm", "import it relatively"
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
            names = {f"{base}.{alias.name}".lstrip(".") for alias in node.names}
            found |= (names & MODULES.keys()) or {base}
    return found - {""}  # the package itself: its version


@pytest.mark.parametrize("module", sorted(MODULES.keys() - ENTRANCES))
def test_a_module_imports_only_from_its_wing_and_those_above(module):
    for imported in imports(module):
        assert wing_of(imported) <= wing_of(module), f"{module} imports {imported}, a wing further down"


def test_the_map_in_contributing_has_the_wings_in_their_order():
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("## The map")[2].partition("Around the package")[0]
    cells = re.findall(r"^\| (`[^|]*`) \|", text, re.MULTILINE)
    named = [name.strip("/").replace("/", ".") for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    assert named == WINGS


def test_no_module_imports_itself_through_others():
    order = TopologicalSorter({module: imports(module) for module in MODULES}).static_order()
    assert set(order) >= MODULES.keys()


def test_no_module_has_the_name_of_a_function_beside_it():
    """`import batchnorm.algorithm2.fold` is always the module, `batchnorm.fold` always the function."""
    code = """
import importlib, pkgutil, types, batchnorm
for found in pkgutil.walk_packages(batchnorm.__path__, "batchnorm."):
    if found.name.rpartition(".")[2] != "__main__":
        parent, _, name = found.name.rpartition(".")
        module = importlib.import_module(found.name)
        assert getattr(importlib.import_module(parent), name) is module, found.name
assert not [name for name in batchnorm.__all__ if isinstance(getattr(batchnorm, name), types.FunctionType)
            and importlib.util.find_spec(f"batchnorm.{name}")]
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert not done.stderr
