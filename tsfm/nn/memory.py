"""Memory allocation of the C library, for speed on a CPU."""

import ctypes
import platform
from functools import cache

# Parameters of mallopt(3).
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
LARGE = 1 << 30


@cache
def keep_large_blocks() -> bool:
    """Let the process keep large freed blocks instead of returning them to the system after every use.

    Every training step and every batch of forecasts allocates the same large tensors again. By default glibc maps each
    of them anew and the system clears all its pages, which takes as long as the computation. Peak memory is unchanged.
    Without glibc, nothing is done.

    Returns:
        Whether the setting was accepted.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(MMAP_THRESHOLD, LARGE) and mallopt(TRIM_THRESHOLD, 2**31 - 1))
