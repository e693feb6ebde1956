"""Batch Normalization, the whole of it, for PyTorch.

Public names are imported when they are first used, so that `import batchnorm` is fast and does not import torch.
"""

from __future__ import annotations

from importlib import import_module as _import_module
from typing import Any as _Any

__version__ = "0.2.0"

# The module of each public name. __init__.pyi imports the same names, for type checkers and editors.
_MODULES = {
    "BatchNorm1d": "layers",
    "BatchNorm2d": "layers",
    "BatchNorm3d": "layers",
    "BatchNormError": "errors",
    "DoctorResult": "diagnosis.result",
    "DoctorRow": "diagnosis.row",
    "DownloadError": "errors",
    "Failure": "errors",
    "Finding": "diagnosis.finding",
    "FoldResult": "algorithm2.fold",
    "FoldRow": "algorithm2.fold",
    "FreezeResult": "algorithm2.freeze",
    "FreezeRow": "algorithm2.freeze",
    "FuseResult": "algorithm2.fuse",
    "FuseRow": "algorithm2.fuse",
    "InsertResult": "algorithm2.insert",
    "InsertRow": "algorithm2.insert",
    "Moments": "moments",
    "PeerError": "errors",
    "RecalibrateResult": "algorithm2.recalibrate",
    "RecalibrateRow": "algorithm2.recalibrate",
    "StorageError": "errors",
    "TrialResult": "paper.trial.result",
    "TrialRow": "paper.trial.verdict",
    "accumulate": "statistics.accumulate",
    "desynchronize": "statistics.synchronize",
    "doctor": "diagnosis.doctor",
    "fold": "algorithm2.fold",
    "freeze": "algorithm2.freeze",
    "functional": "functional",
    "fuse": "algorithm2.fuse",
    "hold_statistics": "statistics.hold",
    "insert": "algorithm2.insert",
    "keep_memory": "memory",
    "kernel_target": "kernels.bindings",
    "masked": "statistics.masks",
    "merge_statistics": "statistics.merging",
    "recalibrate": "algorithm2.recalibrate",
    "synchronize": "statistics.synchronize",
    "trial": "paper.trial.compare",
    "unfreeze": "algorithm2.freeze",
}

__all__ = list(_MODULES)  # pyright: ignore[reportUnsupportedDunderAll]: type checkers read the stub


def __getattr__(name: str) -> _Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _import_module(f".{_MODULES[name]}", __name__)
    value = globals()[name] = module if name == _MODULES[name] else getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
