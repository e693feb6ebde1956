"""Report the software and hardware that made a record."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ... import __version__


def versions(device: str = "cpu") -> dict[str, Any]:
    """Return the versions of the software, the CPU with its cores, and the GPU of `device` "cuda", as JSON values."""
    gpu = {"gpu": torch.cuda.get_device_name()} if device == "cuda" else {}
    return {
        "batchnorm": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        **gpu,
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].split(":", 1)[1].strip() if names else platform.processor() or platform.machine()
