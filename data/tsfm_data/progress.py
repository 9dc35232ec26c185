"""The bar on standard error of whatever takes longer than two seconds: in a terminal alone."""

import multiprocessing
import shutil
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

DELAY = 2.0  # seconds


def progress(items: Iterable[Any] | None, what: str, total: int | None = None, **options: Any) -> "tqdm[Any]":
    """Items with a bar that shows how many are done; a work of less than two seconds and a pipe show none.

    Args:
        items: what is worked on; None for a bar that is told by ``update``.
        what: what stands before the bar.
        total: number of items, if it is not their length.
        **options: of ``tqdm``, such as ``unit``.
    """
    inner = multiprocessing.parent_process() is not None  # a terminal shows the bars of one process
    width, height = shutil.get_terminal_size()  # 80 and 24 if the terminal does not say; tqdm would show nothing
    options |= {"ncols": width, "nrows": height, "leave": False, "delay": DELAY, "disable": inner or None}
    return tqdm(items, desc=what, total=total, **options)
