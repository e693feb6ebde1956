"""Make glibc reuse freed memory for large CPU tensors."""

from __future__ import annotations

import ctypes
import platform

# From glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_memory() -> bool:
    """Make the process reuse the memory of freed tensors. Call it once, at the start of the program.

    By default glibc returns each large freed block to the system and maps the next one anew. At every step the system
    then faults in and zeroes each page of each output, which takes longer than normalizing it. After this call large
    blocks come from the heap, and the heap does not shrink.

    The process stays at its peak memory. Where blocks of very different sizes alternate, that peak may be 1.4 times as
    high (docs/kernels.md has the measurement). The environment can set the same before the program starts:
    `MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=-1 MALLOC_TOP_PAD_=67108864`.

    Returns:
        True if glibc accepted the settings. False without glibc (macOS, musl, Windows), where nothing changes.

    Example:
        >>> import batchnorm as bn
        >>> kept = bn.keep_memory()  # before the first large tensor
        >>> layer = bn.BatchNorm2d(64, activation="relu")
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1, _M_TOP_PAD: 64 << 20}
    return sum(mallopt(parameter, value) for parameter, value in settings.items()) == len(settings)
