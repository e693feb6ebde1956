"""The loops of csrc, with sanitizers, over blocks of exactly their size, against plain sums in double."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMPILER = shutil.which("c++") or shutil.which("g++")
FLAGS = ["-std=c++17", "-O0", "-g", "-ffp-contract=off", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
KERNELS = ["-DBATCHNORM_KERNELS=kernels_checked", '-DBATCHNORM_TARGET="checked"', f"-I{ROOT / 'csrc'}"]


def widest() -> list[str]:
    """The flags of the widest vectors that this machine runs."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return []
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    level = "v4" if "avx512vl" in flags else "v3" if "avx2" in flags else "v2"
    return [f"-march=x86-64-{level}"]


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
def test_no_byte_outside_is_touched_nothing_is_undefined_and_all_is_right(tmp_path):
    driver = tmp_path / "sanitized"
    sources = [ROOT / "tests" / "sanitized.cpp", ROOT / "csrc" / "batch_norm.cpp", ROOT / "csrc" / "threads.cpp"]
    build = [COMPILER, *FLAGS, *widest(), *KERNELS, *map(str, sources), "-o", str(driver), "-ldl"]
    built = subprocess.run(build, capture_output=True, text=True, check=False)
    if "cannot find" in built.stderr and "san" in built.stderr:
        pytest.skip("the compiler has no sanitizers")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([str(driver)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "10368 runs\n"


CROSS, QEMU = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")


@pytest.mark.skipif(CROSS is None or QEMU is None, reason="no cross compiler or emulator for aarch64")
def test_the_same_loops_on_neon(tmp_path):
    driver = tmp_path / "neon"
    sources = [ROOT / "tests" / "sanitized.cpp", ROOT / "csrc" / "batch_norm.cpp", ROOT / "csrc" / "threads.cpp"]
    options = ["-std=c++17", "-O1", "-ffp-contract=off", "-static", *KERNELS]
    subprocess.run([CROSS, *options, *map(str, sources), "-o", str(driver)], capture_output=True, check=True)
    done = subprocess.run([QEMU, str(driver)], capture_output=True, text=True, check=False)
    assert done.stdout == "10368 runs\n", done.stdout + done.stderr
