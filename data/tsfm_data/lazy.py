"""Lazy imports: the public names of a package are imported on first use."""

import ast
import functools
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def lazy_exports(package: str, file: str) -> Callable[[str], Any]:
    """Make a package's ``__getattr__``, which imports names by the imports under TYPE_CHECKING in its ``__init__``.

    So ``from tsfm_data.io import SeriesSet`` loads one module, not the whole folder, and type checkers see plain
    imports. Modules of the package are imported in the same way: ``tsfm_data.io.catalog``. ``dir`` of the package shows
    its public names, imported or not.

    Args:
        package: ``__name__`` of the package.
        file: its ``__file__``.
    """

    def import_name(name: str) -> Any:
        origins = _origins(file)
        if name in origins:
            value = getattr(importlib.import_module(origins[name]), name)
        elif Path(file).with_name(f"{name}.py").is_file():
            value = importlib.import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        members = vars(sys.modules[package])
        return sorted({*members["__all__"], *(name for name in members if name.startswith("__"))})

    vars(sys.modules[package])["__dir__"] = names
    return import_name


@functools.cache
def _origins(file: str) -> dict[str, str]:
    """Name -> module of the imports under ``if TYPE_CHECKING`` in a file."""
    blocks = [node for node in ast.parse(Path(file).read_text(encoding="utf-8")).body if isinstance(node, ast.If)]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name: str(node.module) for node in imports for alias in node.names}
