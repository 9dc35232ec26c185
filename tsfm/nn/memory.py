"""How the C library hands memory back to the system, for work on a CPU."""

import ctypes
import platform
from functools import cache

# Of mallopt(3).
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
LARGE = 1 << 30


@cache
def keep_large_blocks() -> bool:
    """Let the process keep large freed blocks instead of returning them to the system after every use.

    Every step of training and every batch of forecasts allocates the same large tensors again; by default glibc maps
    each of them anew, and the system clears every page of it, which takes as long as the work on them. Peak memory
    stays what it is. Linux with glibc; elsewhere nothing is done.

    Returns:
        Whether the setting took.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(MMAP_THRESHOLD, LARGE) and mallopt(TRIM_THRESHOLD, 2**31 - 1))
