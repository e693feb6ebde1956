"""The notice that the compiled kernels are missing."""

from __future__ import annotations

import sys


def warn_without_kernels() -> None:
    """Print a notice on stderr if batchnorm was installed without its compiled kernels.

    pip shows the output of a failed build only with -v, so a user may not know.
    """
    from ..kernels.bindings import kernel_target

    if kernel_target() is None:
        print(
            "batchnorm: installed without its compiled CPU kernels. Torch's own operations run instead, slower. "
            "Install a C++17 compiler (Debian, Ubuntu: apt install g++) and batchnorm again; pip install -v shows why "
            "the build failed.",
            file=sys.stderr,
        )
