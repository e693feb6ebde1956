"""Describe the machine and the versions for a benchmark record."""

from __future__ import annotations

import platform
import subprocess
import time
from pathlib import Path

import torch

import batchnorm as bn


def described(kept: bool = False) -> dict[str, str]:
    """Return CPU, versions, allocator, date and commit ("-dirty" if files differ).

    Arguments:
        kept: what `keep_memory` returned.
    """
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    commit = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return {
        "cpu": cpu(),
        "torch": torch.__version__,
        "kernels": bn.kernel_target() or "none",
        "malloc": "M_MMAP_MAX=0, M_TRIM_THRESHOLD=-1, M_TOP_PAD=64M for all contenders" if kept else "default",
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
    }


def cpu() -> str:
    """Return the processor's name, where Linux tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
