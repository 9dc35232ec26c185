"""A progress bar on standard error for work that takes longer than two seconds, only in a terminal."""

import multiprocessing
import shutil
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

DELAY = 2.0  # seconds


def progress(
    items: Iterable[Any] | None, what: str, total: int | None = None, shown: bool = True, **options: Any
) -> "tqdm[Any]":
    """Iterate with a progress bar. Work of less than two seconds shows none, nor does output into a pipe.

    Args:
        items: the items; None for a bar that ``update`` moves.
        what: the text in front of the bar.
        total: number of items, if it is not their length.
        shown: whether there is a bar at all.
        **options: of ``tqdm``, such as ``unit``.
    """
    inner = multiprocessing.parent_process() is not None  # a terminal shows the bars of one process
    width, height = shutil.get_terminal_size()  # 80 and 24 if the terminal does not say; tqdm would show nothing
    options |= {"ncols": width, "nrows": height, "leave": False, "delay": DELAY, "disable": inner or not shown or None}
    return tqdm(items, desc=what, total=total, **options)
