"""A compiler and an emulator for aarch64, where this machine has them."""

import shutil
import sys
from importlib.util import find_spec

import pytest


def cross_compiler():
    """Return the command of a C++ compiler for aarch64: GCC's, or that of the extra `wheels`. None without one."""
    if found := shutil.which("aarch64-linux-gnu-g++"):
        return [found]
    return [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-musl"] if find_spec("ziglang") else None


CROSS, QEMU = cross_compiler() or [], shutil.which("qemu-aarch64") or ""
needs_aarch64 = pytest.mark.skipif(not (CROSS and QEMU), reason="no cross compiler or emulator for aarch64")
