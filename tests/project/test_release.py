"""Test what a release holds: the wheel without kernels, the sdist, and one version everywhere."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile

import pytest
from support.paths import ROOT

import batchnorm as bn

BUILD = "from scikit_build_core import build; print(build.build_{kind}({folder!r}, {settings!r}))"


def built(kind: str, folder, settings: dict[str, str] | None = None):
    """Build by the project's build backend. Return the file."""
    code = BUILD.format(kind=kind, folder=str(folder), settings=settings or {})
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return built("wheel", tmp_path_factory.mktemp("wheel"), {"wheel.cmake": "false"})


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    return built("sdist", tmp_path_factory.mktemp("sdist"))


def test_the_wheel_without_kernels_is_for_every_system(wheel):
    assert wheel.name == f"batchnorm-{bn.__version__}-py3-none-any.whl"
    names = zipfile.ZipFile(wheel).namelist()
    assert "batchnorm/kernels/bindings.py" in names
    assert not [name for name in names if name.endswith((".so", ".pt", ".jsonl"))]


def test_the_wheel_works_without_kernels(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = """
import torch, batchnorm as bn
assert bn.kernel_target() is None
x = torch.randn(8, 3, 5, 5)
assert torch.allclose(bn.BatchNorm2d(3)(x), torch.nn.BatchNorm2d(3)(x), atol=1e-5)
print(bn.__file__)
"""
    # -S: no site-packages hooks, so that the wheel's files are found and not the checkout's.
    packages = [str(tmp_path), *(p for p in sys.path if p.endswith("site-packages"))]
    start = f"import sys; sys.path[:0] = {packages!r}\n"
    done = subprocess.run([sys.executable, "-S", "-c", start + code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path))


@pytest.mark.slow
def test_the_sdist_holds_the_sources_and_no_records(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"csrc/interface.h", "CMakeLists.txt", "pyproject.toml", "src/batchnorm/__init__.py"} <= names
    assert not [name for name in names if name.startswith("records")]


WHEEL = r"batchnorm-([\d.]+)-py3"
VERSIONS = {
    "CITATION.cff": r"^version: (.*)$",
    "CHANGELOG.md": r"^## (\d\S*)",
    "README.md": WHEEL,
    "README.zh-CN.md": WHEEL,
    "docs/kernels.md": WHEEL,
}


@pytest.mark.parametrize("file", VERSIONS)
def test_every_page_names_the_version_of_the_package(file):
    assert re.findall(VERSIONS[file], (ROOT / file).read_text(), re.MULTILINE)[0] == bn.__version__
