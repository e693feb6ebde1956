"""The allocator's way with large outputs, which on a CPU costs more than the arithmetic."""

from __future__ import annotations

import ctypes
import platform

# Of glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_memory() -> bool:
    """Let the process keep the memory of freed tensors, so that the next ones take it over; call it once, at the start.

    By default glibc maps every large tensor anew and gives it back when it is freed: each page of each output is
    faulted in and zeroed by the kernel, at every step, which takes longer than normalising it. After this call large
    blocks come from the heap, and the heap does not shrink: the process stays at its peak memory, and that may be half
    as high again where blocks of very different sizes alternate (10 and 52 % in two trials). It is as
    `MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=-1 MALLOC_TOP_PAD_=67108864` in the environment.

    Returns:
        Whether it was done: False off glibc (macOS, musl, Windows), where nothing changes.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1, _M_TOP_PAD: 64 << 20}
    return sum(mallopt(parameter, value) for parameter, value in settings.items()) == len(settings)
