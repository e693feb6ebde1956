"""The notice that the compiled kernels are missing."""

from __future__ import annotations

import sys


def warn_without_kernels() -> None:
    """Print a notice on stderr if batchnorm runs without its compiled kernels.

    pip shows the output of a failed build only with -v, so a user may not know.
    """
    from ..kernels.bindings import kernel_target

    if kernel_target() is None:
        print(
            "batchnorm: runs without its compiled CPU kernels, on torch's own operations, slower. On Linux install a "
            "manylinux wheel of batchnorm, or build it from source with a C++17 compiler (Debian, Ubuntu: apt install "
            "g++); pip install -v shows why a build failed.",
            file=sys.stderr,
        )
