"""Sections for the tests of the GPU lab, which runs them in processes of their own."""

import os
import time
from collections.abc import Iterator
from typing import Any


def good(device: str, tiny: bool) -> Iterator[dict[str, Any]]:
    """Two rows."""
    yield {"device": device, "tiny": tiny}
    yield {"device": "x", "number": 0.123456}


def broken(device: str, tiny: bool) -> Iterator[dict[str, Any]]:
    """A row, then an error."""
    yield {"row": 1}
    raise RuntimeError("an illegal\nmemory access")


def dead(device: str, tiny: bool) -> Iterator[dict[str, Any]]:
    """A row, then the process ends."""
    yield {"row": 2}
    os._exit(7)


def endless(device: str, tiny: bool) -> Iterator[dict[str, Any]]:
    """A row, then nothing."""
    yield {"row": 3}
    time.sleep(600)
