"""The optional packages, and the extra of batchnorm that installs each."""

from __future__ import annotations

import importlib.util

from ..errors import BatchNormError

EXTRAS = {
    "tyro": "cli",
    "rich": "paper",
    "matplotlib": "paper",
    "pydantic": "paper",
    "torchvision": "imagenet",
    "PIL": "imagenet",
    "safetensors": "files",
    "onnx": "files",
    "onnxscript": "files",
}


def how_to_install(package: str) -> str:
    """Return the shell command that installs a package by its extra."""
    return f"pip install 'batchnorm[{EXTRAS[package]}]'"


def check_installed(package: str, purpose: str) -> None:
    """Raise BatchNormError unless `package` is installed; `purpose` names what needs it."""
    if importlib.util.find_spec(package) is None:
        raise BatchNormError(f"{purpose} need {package}: {how_to_install(package)}")
