"""Commands that other packages add by entry points, and their help.

The name of an entry point in the group ``tsfm.commands`` consists of the words of its command, joined by dots. Its
value is a function: ``"image.predict" = "tsfm_vision.commands.image:predict"``. Help reads the function's source and
imports nothing, so it is fast even if the package imports slowly.
"""

import ast
import copy
import functools
import importlib.util
import sys
import textwrap
import typing
from collections.abc import Callable, Collection
from importlib.metadata import EntryPoint
from pathlib import Path

from tsfm_data.errors import InputError
from tsfm_data.plugins import entry_point_error, entry_points, load, package_of

GROUP = "tsfm.commands"


def added_commands(own: Collection[str]) -> dict[str, EntryPoint]:
    """The commands that packages add: their words and entry points.

    Args:
        own: the words of our commands, which packages cannot replace.
    """
    taken = {word for name in own for word in (name.replace(" ", "."), name.split()[0])}
    return {entry.name.replace(".", " "): entry for entry in entry_points(GROUP, taken)}


def added_function(name: str) -> Callable[..., object]:
    """The function of a command that a package adds, by the words of the command.

    Raises:
        InputError: no installed package has this command, or it cannot be imported.
    """
    entry = added_commands(()).get(name)
    if entry is None:
        raise InputError(
            f"expected an installed package with the command tsfm {name}, found none: pip install 'tsfm-suite[vision]'"
        )
    return function_of(entry)


def function_of(entry: EntryPoint) -> Callable[..., object]:
    """Import the function of a command.

    Raises:
        InputError: it cannot be imported, or is not a function.
    """
    what = f"the command tsfm {entry.name.replace('.', ' ')}"
    function = load(entry, what)
    if not callable(function):
        raise entry_point_error(entry, what, f"a {type(function).__name__}")
    return function


def summary(entry: EntryPoint) -> str:
    """The line of a command in the help: the first line of its docstring, or else the name of the package."""
    _, function = definition(entry)
    line = (ast.get_docstring(function) or "").partition("\n")[0].rstrip(".") if function else ""
    return textwrap.shorten(line[:1].lower() + line[1:], 64, placeholder=" ...") or f"added by {package_of(entry)}"


def outline(entry: EntryPoint) -> Callable[..., object] | None:
    """A command's function without its body, built from its source without importing the package.

    None if its annotations or defaults need more than the standard library; then the function must be imported.
    """
    tree, function = definition(entry)
    if function is None or function.decorator_list or ast.get_docstring(function) is None:
        return None
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom) and standard(node)]
    function = copy.copy(function)
    function.body = function.body[:1]
    scope: dict[str, typing.Any] = {}
    try:
        exec(compile(ast.Module([*imports, function], []), entry.module, "exec"), scope)
        typing.get_type_hints(scope[entry.attr])
    except Exception:  # a type or a default defined in the package
        return None
    return scope[entry.attr]


def standard(node: ast.Import | ast.ImportFrom) -> bool:
    """Whether a statement imports only from the standard library."""
    if isinstance(node, ast.ImportFrom):
        return node.level == 0 and str(node.module).split(".")[0] in sys.stdlib_module_names
    return all(alias.name.split(".")[0] in sys.stdlib_module_names for alias in node.names)


def definition(entry: EntryPoint) -> tuple[ast.Module, ast.FunctionDef | None]:
    """The syntax tree of an entry point's module and of its function; None if its source cannot be read."""
    tree = source(entry.module)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == entry.attr]
    return tree, functions[-1] if functions else None


@functools.cache
def source(module: str) -> ast.Module:
    """The syntax tree of a module, without importing it; empty if its source cannot be read."""
    top, *inner = module.split(".")
    try:
        spec = importlib.util.find_spec(top)  # for an inner module this would import the package
        if spec is None:
            return ast.Module([], [])
        files = [Path(str(spec.origin))]
        if inner:
            folders = [Path(folder, *inner) for folder in spec.submodule_search_locations or ()]
            files = [file for f in folders for file in (f / "__init__.py", f.with_name(f.name + ".py"))]
        return ast.parse(next(file for file in files if file.is_file()).read_text(encoding="utf-8"))
    except (ImportError, OSError, StopIteration, SyntaxError, ValueError):
        return ast.Module([], [])
