"""Test the C interface: the library alone, and what happens without one or with a wrong one."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from support.kernel_cases import by_the_kernels
from support.paths import ROOT

from batchnorm.kernels import bindings, library

COMPILER = shutil.which("cc") or ""
needs_compiler = pytest.mark.skipif(not COMPILER, reason="no C compiler")
HEADER = ROOT / "csrc" / "interface.h"


def compiled(tmp_path, source: str):
    """Return the folder of a package whose library is this C source."""
    file = tmp_path / library.FILES[0]
    file.parent.mkdir()
    (tmp_path / "source.c").write_text(source)
    subprocess.run([COMPILER, "-shared", "-fPIC", tmp_path / "source.c", "-o", file], check=True)
    return file


@by_the_kernels[0]
def test_the_library_needs_neither_torch_nor_a_release_of_python():
    file = library.installed_file()
    assert file is not None
    code = f"import ctypes, sys; ctypes.CDLL({str(file)!r}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"
    assert ".cpython-" not in file.name


@needs_compiler
def test_the_header_is_c(tmp_path):
    (tmp_path / "user.c").write_text(f'#include "{HEADER}"\nint main(void) {{ return 0; }}\n')
    subprocess.run(
        [COMPILER, "-std=c99", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", tmp_path / "user.c"], check=True
    )


@needs_compiler
def test_fields_lie_where_c_puts_them(tmp_path):
    calls = {"forward": library.FORWARD, "backward": library.BACKWARD}
    last = {"forward": "count", "backward": "count"}  # the field at the end: its offset holds all sizes before it
    lines = [f'printf("%zu\\n", offsetof(batchnorm_{call}_call, {last[call]}));' for call in calls]
    source = (
        f'#include <stddef.h>\n#include <stdio.h>\n#include "{HEADER}"\nint main(void) {{ {"".join(lines)} return 0; }}'
    )
    (tmp_path / "offsets.c").write_text(source)
    subprocess.run([COMPILER, tmp_path / "offsets.c", "-o", tmp_path / "offsets"], check=True)
    found = subprocess.run([tmp_path / "offsets"], check=True, capture_output=True, text=True).stdout.split()
    assert [int(offset) for offset in found] == [layout.size - 8 for layout in calls.values()]


@needs_compiler
def test_a_library_of_other_structs_is_refused(tmp_path):
    file = compiled(tmp_path, "#include <stdint.h>\nconst int64_t batchnorm_sizes[4] = {8, 8, 8, 8};")
    with pytest.raises(
        ImportError, match=r"built for structs of \[8, 8, 8, 8\] bytes; wanted .*; install batchnorm again"
    ):
        library.Library(file)


def test_a_file_that_is_no_library_is_told(tmp_path, monkeypatch):
    file = tmp_path / library.FILES[0]
    file.parent.mkdir()
    file.write_bytes(b"no library")
    monkeypatch.setattr(library, "FOLDERS", [str(tmp_path)])
    with pytest.warns(RuntimeWarning, match=r"kernels cannot be loaded.*libbatchnorm"):
        assert library.load() is None


def test_without_a_library_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(library, "FOLDERS", [str(tmp_path)])
    assert library.load() is None


@by_the_kernels[0]
@pytest.mark.parametrize("channels", [2**58, 2**61])
def test_too_little_memory_is_an_error_of_python(channels):
    problem = (1, channels, 1, False, False, 0, 1, 0.0, 0, 0, 0)
    with pytest.raises(MemoryError, match="batchnorm_forward: no memory for the sums of the channels"):
        bindings._kernels.forward(*problem, 0, 1e-5, 0, 0, 0, 0, 0.0, 0, 0, 0)
    with pytest.raises(MemoryError, match="batchnorm_backward"):
        bindings._kernels.backward(*problem, *[0] * 10)
