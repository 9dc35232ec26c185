"""What the scripts of the tables share: how a page is written, and how a mistake of the user ends."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tsfm_data.errors import InputError
from tsfm_data.io import atomic_file


def write(folder: Path, name: str, rows: list[dict[str, Any]], summary: dict[str, Any], text: str) -> None:
    """Write ``NAME.md`` and ``NAME.json``, and print the page."""
    with atomic_file(folder / f"{name}.json") as file:
        file.write_text(json.dumps({"rows": rows, "summary": summary}, indent=1) + "\n")
    with atomic_file(folder / f"{name}.md") as file:
        file.write_text(text)
    print(text)


def run(main: Callable[[], None]) -> None:
    """Run a script; a mistake of the user is one line and status 2."""
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
