"""Shared by the benchmark scripts: writing a page, and reading the command line."""

import inspect
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tsfm.commands.cli import call, end_with
from tsfm_data.io import atomic_file


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
