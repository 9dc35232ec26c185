"""PROOF.md: what the suite withstands, from the pages of the benchmarks that measured it.

python benchmarks/proof.py
"""

import re
from pathlib import Path

from common import run

from tsfm_data.io import atomic_file

FOLDER = Path(__file__).resolve().parent
PAGES = ("soak", "fuzz", "scale", "engine", "reading", "distributed")
BEGIN = """# Proof

What happens if runs are killed, files are damaged, tables are large, or two processes train: measured by the commands
below, which are in this repository. `python benchmarks/proof.py` puts their pages together here.
"""
RELATIVE = re.compile(r"\]\((?!\w+:|/|#)")  # the target of a link to a file next to the page


def text() -> str:
    """The pages as sections of one."""
    parts = [BEGIN]
    for name in PAGES:
        page = (FOLDER / f"{name}.md").read_text(encoding="utf-8").strip()
        page = re.sub(r"^#", "##", page, flags=re.MULTILINE)
        parts.append(RELATIVE.sub("](benchmarks/", page) + "\n")
    return "\n".join(parts)


def main(output: Path = FOLDER.parent / "PROOF.md") -> None:
    """Put the pages together.

    Args:
        output: the file to write.
    """
    with atomic_file(output) as file:
        file.write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    run(main)
