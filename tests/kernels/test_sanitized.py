"""Run the loops of csrc with sanitizers on blocks of exactly their size, and check the results in double."""

import functools
import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
from support.cross import CROSS, QEMU, needs_aarch64
from support.paths import ROOT

COMPILER = shutil.which("c++") or shutil.which("g++")
CHECKED = ["-g1", "-O0", "-fno-sanitize-recover=all"]
EVERY_RUN = f"{25 * 13 * 48 - 50 * 36} runs"  # sizes, channels, variants; 50 large shapes leave out 36 variants


def levels() -> list[str]:
    """Return the compiler flags of each instruction set that this machine runs."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return [""]
    known = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    needs = {"v2": None, "v3": "avx2", "v4": "avx512vl"}
    return [f"-march=x86-64-{level}" for level, flag in needs.items() if flag is None or flag in known]


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """Return a function that builds the program. Its checks are optimized, and compiled once a compiler."""

    @functools.cache
    def checks(compiler: tuple[str, ...]) -> Path:
        made = tmp_path_factory.mktemp("checks") / "driver.o"
        subprocess.run([*compiler, "-O2", "-c", ROOT / "tests" / "kernels" / "sanitized.cpp", "-o", made], check=True)
        return made

    def build(compiler: list[str], loops: list[str], link: list[str]) -> Path:
        program = tmp_path_factory.mktemp("driver") / "driver"
        common = [*compiler, "-std=c++17", "-ffp-contract=off", f"-I{ROOT / 'csrc'}"]
        named = ["-DBATCHNORM_KERNELS=kernels_checked", '-DBATCHNORM_TARGET="checked"']
        sources = [ROOT / "csrc" / "batch_norm.cpp", ROOT / "csrc" / "threads.cpp"]
        whole = [*common, *loops, *named, checks(tuple(common)), *sources, "-o", program, "-ldl", *link]
        built = subprocess.run(whole, capture_output=True, text=True, check=False)
        if "cannot find" in built.stderr and "san" in built.stderr:
            pytest.skip("the compiler has no sanitizers")
        assert built.returncode == 0, built.stderr
        return program

    return build


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.parametrize("level", levels())
def test_the_loops_stay_inside_their_blocks_and_are_right(driver, level):
    pool = ["-Wl,--no-as-needed", "-fopenmp"] if platform.system() == "Linux" else []
    # Undefined arithmetic and dangling references are so at any width; their checks double the time of the compiler.
    # An undefined operation is a trap, which compiles faster than a message. The address sanitizer names its line.
    whole = ["-fsanitize=address,undefined", "-fsanitize-undefined-trap-on-error"]
    narrower = ["-fsanitize=address", "-fno-sanitize-address-use-after-scope"]
    sanitizers = whole if level == levels()[-1] else narrower
    assert COMPILER is not None
    program = driver([COMPILER], [*CHECKED, *sanitizers, *filter(None, [level])], pool)
    # Two threads that spin while they wait take the processor from other tests.
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "ASAN_OPTIONS": "handle_sigill=1"}
    done = subprocess.run([program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == f"{EVERY_RUN}, {'two threads' if pool else 'one thread'}\n"


@needs_aarch64
def test_the_same_loops_on_neon(driver):
    program = driver(CROSS, ["-O1"], ["-static"])
    done = subprocess.run([QEMU, program], capture_output=True, text=True, check=False)
    assert done.stdout == f"{EVERY_RUN}, one thread\n", done.stdout + done.stderr
