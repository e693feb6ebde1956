"""The order of the rooms: a module imports only from rows above its own (CONTRIBUTING.md)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "batchnorm"
# Modules of one row do not import one another. Whatever is missing here fails below.
ROWS = [
    {"errors", "table"},
    {"moments", "kernels", "in_torch", "memory", "batches", "ops", "compare", "accelerate"},
    {"differentiable"},
    {"functional"},
    {"layers"},
    {"graph", "tracer"},
    {"trace", "affine"},
    {"absorb"},
    {"compose"},
    {"fold", "freeze", "fuse", "insert", "recalibrate"},
    {"files"},
    {"command"},
    {
        "paper.data",
        "paper.run",
        "paper.processes",
        "paper.inception",
        "paper.variants",
        "paper.settings",
        "paper.decode",
    },
    {"paper.backprop", "paper.evaluate", "paper.train", "paper.inception_config", "paper.shards"},
    {"paper.mnist", "paper.images"},
    {"paper.sweep", "paper.jobs", "paper.distortions"},
    {"paper.comparison", "paper.loader"},
    {"paper.figures"},
    {"paper.report", "paper.imagenet"},
    {"paper.inception_report", "paper.predict"},
    {"paper.console"},
    {"paper.progress"},
    {"cli"},
]
ENTRANCES = {"__init__", "__main__", "paper.__init__"}
ROW = {module: number for number, row in enumerate(ROWS) for module in row}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


def imports(path: Path) -> set[str]:
    """The modules of this package that the file imports, wherever in it."""
    package = name_of(path).split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert all(alias.name.split(".")[0] != "batchnorm" for alias in node.names), "import it relatively"
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert (node.module or "").split(".")[0] != "batchnorm", "import it relatively"
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] + (node.module or "").split(".")
            modules = {".".join(filter(None, [*base, alias.name])) for alias in node.names}
            found |= {name for name in modules if name in ROW} or {".".join(filter(None, base))}
    return found - {""}  # the package itself: its version


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=name_of)
def test_a_module_imports_only_from_rows_above(path):
    module = name_of(path)
    if module in ENTRANCES:
        return
    assert module in ROW, f"{module} has no row; give it one"
    for imported in imports(path):
        assert ROW[imported] < ROW[module], f"{module} imports {imported}, which is not above it"


def test_the_library_needs_torch_and_numpy_alone():
    extras = ["tyro", "rich", "matplotlib", "plotly"]
    code = f"import sys, batchnorm; sys.exit(str([name for name in {extras} if name in sys.modules] or 0))"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.stderr.strip() == "0"
