"""How much memory this process may still take."""

import contextlib
import ctypes
from pathlib import Path

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

# The memory and the limit of a container, in the two versions of Linux's control groups.
GROUPS = (("memory.current", "memory.max"), ("memory/memory.usage_in_bytes", "memory/memory.limit_in_bytes"))


def free_memory() -> int:
    """Bytes that this process may still take: the least that the machine, its container and its own limits leave.

    8 GiB if the system does not say.
    """
    free = [8 << 30]
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = [int(lines["MemAvailable"].split()[0]) << 10] if "MemAvailable" in lines else free
    for used, limit in GROUPS:
        with contextlib.suppress(OSError, ValueError):  # no such group, or no limit ("max")
            folder = Path("/sys/fs/cgroup")
            free.append(int((folder / limit).read_text()) - int((folder / used).read_text()))
    limits = () if resource is None else ((resource.RLIMIT_AS, 0), (resource.RLIMIT_DATA, 5))
    for kind, column in limits:
        most = resource.getrlimit(kind)[0]
        with contextlib.suppress(OSError):
            if most != resource.RLIM_INFINITY:
                pages = int(Path("/proc/self/statm").read_text().split()[column])
                free.append(most - pages * resource.getpagesize())
    return max(0, min(free))


def release_memory() -> None:
    """Give freed memory back to the system if the C library can; this takes a few milliseconds."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
