"""The private names of torch are in one file, and the torch that is installed has them."""

import ast
from pathlib import Path

import torch
from support.paths import ROOT
from torch import fx, nn

from batchnorm import torch_private

SOURCE = ROOT / "src" / "batchnorm"
TRIED = ("2.8", "2.14")  # the oldest and the newest release that the names were tried with
# Attributes that torch's classes keep for those who subclass or inspect them.
PROTECTED = {
    nn.Module: {
        "_apply", "_backward_hooks", "_backward_pre_hooks", "_buffers", "_forward_hooks", "_forward_pre_hooks",
        "_load_from_state_dict", "_modules", "_parameters",
    },
    torch_private.OpOverload: {"_opname"},
    fx.Tracer: {"_proxy_placeholder"},
    fx.Graph: {"_tracer_cls"},
    torch.distributed.ProcessGroup: {"_get_backend"},
}  # fmt: skip
OURS = {"_of_rows", "_special"}
PYTHONS = {"_asdict", "_fields", "_replace"}  # of named tuples
INSTANCES = {nn.Module: nn.Module(), torch_private.OpOverload: torch.ops.aten.relu.default, fx.Graph: fx.Graph()}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def uses(tree: ast.Module) -> tuple[set[str], set[str]]:
    """Return the private names of torch in a module, and the private attributes of whatever else."""
    imported, names, attributes = set(), set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {(a.asname or a.name).split(".")[0] for a in node.names if a.name.split(".")[0] == "torch"}
        elif isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "torch":
            imported |= {a.asname or a.name for a in node.names}
            full = {f"{node.module}.{a.name}" for a in node.names}
            names |= {name for name in full if any(map(is_private, name.split(".")))}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            root = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name) and root.id in imported:
                names.add(ast.unparse(node))
            elif not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                attributes.add(node.attr)
    return names, attributes


def used() -> dict[Path, tuple[set[str], set[str]]]:
    return {path.relative_to(SOURCE): uses(ast.parse(path.read_text())) for path in sorted(SOURCE.rglob("*.py"))}


def test_private_names_of_torch_are_in_one_file():
    found = {str(path): names for path, (names, _) in used().items() if names}
    assert found.pop("torch_private.py")
    assert found == {}


def test_protected_attributes_are_those_of_the_list():
    found = set().union(*(attributes for _, attributes in used().values()))
    assert found == set().union(*PROTECTED.values(), OURS, PYTHONS)


def test_the_installed_torch_has_them():
    missing = [
        f"{kind.__name__}.{name}"
        for kind, names in PROTECTED.items()
        for name in sorted(names)
        if not hasattr(INSTANCES.get(kind, kind), name)
    ]
    assert missing == [], f"tried with torch {' to '.join(TRIED)}; this is {torch.__version__}"


def test_they_were_tried_with_the_oldest_torch_that_is_allowed():
    assert f'"torch>={TRIED[0]}"' in (ROOT / "pyproject.toml").read_text()
