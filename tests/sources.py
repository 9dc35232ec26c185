"""The modules of the checkout, and what each imports."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"tsfm": ROOT / "tsfm", "tsfm_data": ROOT / "data/tsfm_data", "tsfm_vision": ROOT / "vision/tsfm_vision"}


def modules() -> Iterator[tuple[str, Path]]:
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join([package, *(part for part in parts if part != "__init__")]), path


MODULES = dict(modules())


@functools.cache
def imported(path: Path) -> tuple[tuple[str, bool], ...]:
    """Dotted names that a file imports, and whether it does so when it is imported itself.

    What stands under ``if TYPE_CHECKING`` is not imported at all.
    """
    tree = ast.parse(path.read_text())
    skipped, late = set(), set()
    found: list[tuple[str, bool]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            skipped.update(id(inner) for part in node.body for inner in ast.walk(part))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            late.update(id(inner) for inner in ast.walk(node))
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found += ((alias.name, id(node) not in late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += ((f"{node.module}.{alias.name}", id(node) not in late) for alias in node.names)
    return tuple(found)
