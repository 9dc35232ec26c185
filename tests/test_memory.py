"""Large blocks stay with the process when asked, so that a training step stops mapping them anew."""

import platform
import subprocess
import sys

import pytest

CODE = """
import ctypes, torch
from tsfm.nn.memory import keep_large_blocks

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]

mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Info

def kept():
    torch.ones(64 << 18)  # 64 MiB
    return mallinfo().fordblks >= 64 << 20

assert not kept()
assert keep_large_blocks()
assert kept()
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_when_large_blocks_are_kept_then_a_freed_one_stays_with_the_process() -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", CODE], check=True)
