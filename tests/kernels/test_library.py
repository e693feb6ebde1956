"""Test the C interface: the library alone, and what happens without one or with a wrong one."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from hashlib import sha256

import pytest
from support.cross import CROSS, QEMU, needs_aarch64
from support.kernel_cases import by_the_kernels
from support.paths import ROOT

from batchnorm.kernels import bindings, library

COMPILER = shutil.which("cc") or ""
needs_compiler = pytest.mark.skipif(not COMPILER, reason="no C compiler")
needs_kernels = by_the_kernels[0]
HEADER = ROOT / "csrc" / "interface.h"
STRUCT = re.compile(r"typedef struct \{(?P<fields>[^}]*)\} (?P<name>batchnorm_\w+);")
LAYOUTS = {
    "batchnorm_forward_call": library.FORWARD,
    "batchnorm_backward_call": library.BACKWARD,
    "batchnorm_inference_call": library.INFERENCE,
    "batchnorm_running_call": library.RUNNING,
}


def declared() -> dict[str, list[str]]:
    """Return the fields of each struct of the header, as declarations without comments."""
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
    structs = {found["name"]: found["fields"] for found in STRUCT.finditer(text)}
    return {name: [line.strip() for line in fields.split(";") if line.strip()] for name, fields in structs.items()}


def packed(name: str) -> str:
    """Return the fields of a struct as `struct` names them, a letter a field."""
    letters = {"int64_t": "q", "int32_t": "i", "float": "f", "double": "d"}
    found = ""
    for declaration in declared()[name]:
        kind = declaration.removeprefix("const ").split()[0]
        if kind == "batchnorm_problem":
            found += packed(kind)
        else:
            found += ("P" if "*" in declaration else letters[kind]) * (1 + declaration.count(","))
    return found


def spelled_out(layout: str) -> str:
    return re.sub(r"(\d+)(\w)", lambda found: int(found[1]) * found[2], layout.removeprefix("@"))


def shown_by(*tool: str) -> str:
    """Return what a tool prints of the installed library."""
    file = library.installed_file()
    assert file is not None
    return subprocess.run([*tool, file], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("name", LAYOUTS)
def test_structs_have_the_fields_of_the_header(name):
    assert spelled_out(LAYOUTS[name].format) == packed(name)


def test_another_header_is_another_interface():
    """Fields may be swapped without another size. If this fails, raise INTERFACE here and in interface.cpp."""
    digest = sha256(repr(declared()).encode()).hexdigest()[:8]
    assert (library.INTERFACE, digest) == (1, "d20ea126")


@needs_compiler
def test_the_header_is_c(tmp_path):
    (tmp_path / "user.c").write_text(f'#include "{HEADER}"\nint main(void) {{ return 0; }}\n')
    strict = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-fsyntax-only"]
    subprocess.run([COMPILER, *strict, tmp_path / "user.c"], check=True)


@needs_compiler
@needs_kernels
@pytest.mark.skipif(sys.platform != "linux", reason="-rpath is an option of Linux linkers")
def test_a_program_in_c_uses_the_library(tmp_path):
    file, strict = library.installed_file(), ["-std=c99", "-Wall", "-Wextra", "-Werror", f"-I{HEADER.parent}"]
    assert file is not None
    user = [ROOT / "tests/kernels/interface.c", file, f"-Wl,-rpath,{file.parent}", "-lm", "-o", tmp_path / "user"]
    subprocess.run([COMPILER, *strict, *user], check=True)
    done = subprocess.run([tmp_path / "user"], capture_output=True, text=True, check=False)
    assert done.stdout == f"right: interface {library.INTERFACE}, {bindings.kernel_target()}\n"


@needs_aarch64
def test_a_program_in_c_uses_the_library_on_aarch64(tmp_path):
    named = ["-DBATCHNORM_KERNELS=kernels_native", '-DBATCHNORM_TARGET="aarch64"']
    sources, include = sorted(HEADER.parent.glob("*.cpp")), f"-I{HEADER.parent}"
    user = ["-x", "c", "-std=c99", "-O1", include, "-c", ROOT / "tests/kernels/interface.c"]
    subprocess.run([*CROSS, *user, "-o", tmp_path / "user.o"], check=True)  # without -O1 Zig adds a sanitizer
    whole = ["-std=c++17", "-O1", "-ffp-contract=off", include, *named, *sources, tmp_path / "user.o", "-static"]
    subprocess.run([*CROSS, *whole, "-o", tmp_path / "user"], check=True)
    done = subprocess.run([QEMU, tmp_path / "user"], capture_output=True, text=True, check=False)
    assert done.stdout == f"right: interface {library.INTERFACE}, aarch64\n"


@needs_kernels
@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("readelf"), reason="reads ELF files")
def test_the_library_needs_neither_torch_nor_python():
    found = re.findall(r"NEEDED.*\[(.*)\]", shown_by("readelf", "-d", "--wide"))
    needed = {name.partition(".so")[0] for name in found}
    assert needed <= {
        "libc",
        "libm",
        "libdl",
        "libpthread",
        "libstdc++",
        "libgcc_s",
        "ld-linux-x86-64",
        "ld-linux-aarch64",
    }


@needs_kernels
@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("nm"), reason="reads ELF files")
def test_the_library_shows_its_interface_alone():
    """Zig links a C++ runtime in. If the process has another one, neither may replace a part of the other."""
    names = {line.split()[-1] for line in shown_by("nm", "-D", "--defined-only").splitlines()}
    assert names == set(re.findall(r"\b(batchnorm_\w+)(?=\(|;)", HEADER.read_text())) - {*LAYOUTS, "batchnorm_problem"}


@needs_compiler
@pytest.mark.parametrize(
    ("source", "interface"),
    [("#include <stdint.h>\nconst int64_t batchnorm_interface = 99;", 99), ("int nothing;", None)],
    ids=["another interface", "another library"],
)
def test_another_library_is_refused(source, interface, tmp_path):
    (tmp_path / "source.c").write_text(source)
    subprocess.run([COMPILER, "-shared", "-fPIC", tmp_path / "source.c", "-o", tmp_path / "lib.so"], check=True)
    with pytest.raises(ImportError, match=f"has interface {interface}; wanted 1; install batchnorm again"):
        library.Library(tmp_path / "lib.so")


def test_a_file_that_is_no_library_is_told(tmp_path, monkeypatch):
    file = tmp_path / library.FILE
    file.parent.mkdir()
    file.write_bytes(b"no library")
    monkeypatch.setattr(library, "FOLDERS", [str(tmp_path)])
    with pytest.warns(RuntimeWarning, match=r"kernels cannot be loaded.*libbatchnorm.*Install batchnorm again"):
        assert library.load() is None


def test_without_a_library_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(library, "FOLDERS", [str(tmp_path)])
    assert library.load() is None


@needs_kernels
@pytest.mark.parametrize("channels", [2**58, 2**61])
def test_too_little_memory_is_an_error_of_python(channels):
    problem = (1, channels, 1, False, False, 0, 1, 0.0, 0, 0, 0)
    with pytest.raises(MemoryError, match="batchnorm_forward: no memory for the sums of the channels"):
        bindings._kernels.forward(*problem, 0, 1e-5, 0, 0, 0, 0, 0.0, 0, 0, 0)
    with pytest.raises(MemoryError, match="batchnorm_backward"):
        bindings._kernels.backward(*problem, *[0] * 10)
