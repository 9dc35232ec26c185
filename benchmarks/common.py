"""Shared by the benchmark scripts: real series, writing a page, and reading the command line."""

import inspect
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tsfm.commands.cli import call, end_with
from tsfm_data.io import SeriesSet, atomic_file, catalog

ROWS = 1000  # of each series, the latest
SEASONS = {"h": 24, "15min": 96, "10min": 144, "D": 7, "B": 5}


def latest(name: str, most: int) -> SeriesSet:
    """The last rows of some series of a set, those that are long enough and vary."""
    single = catalog.load(name).univariate()
    rows = []
    for i in np.linspace(0, len(single) - 1, min(len(single), 4 * most)).astype(int):
        values = single.item(i)[-ROWS:, 0]
        seen = np.flatnonzero(np.isfinite(values))
        if len(values) >= 600 and len(seen) > 0.9 * len(values) and len(np.unique(values[seen])) > 20:
            rows.append(np.interp(np.arange(len(values)), seen, values[seen]))
    return SeriesSet.from_arrays(name, rows[:most], single.freqs[0].split("@")[0])


def write(folder: Path, name: str, rows: list[dict[str, Any]], summary: dict[str, Any], text: str) -> None:
    """Write ``NAME.md`` and ``NAME.json``, and print the page."""
    with atomic_file(folder / f"{name}.json") as file:
        file.write_text(json.dumps({"rows": rows, "summary": summary}, indent=1) + "\n")
    with atomic_file(folder / f"{name}.md") as file:
        file.write_text(text)
    print(text)


def run(main: Callable[..., None], words: Sequence[str] | None = None) -> None:
    """Run a script: the parameters of its function are its options. A user's mistake ends in one line and status 2.

    Args:
        main: the function; its annotations give the types of the options, its docstring the help.
        words: words of the command line; by default those that the script was started with.
    """
    program = f"python benchmarks/{Path(inspect.getfile(main)).name}"
    end_with(lambda: call(program, main, sys.argv[1:] if words is None else words))
