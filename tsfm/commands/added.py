"""The commands that other packages add, and what help says of them.

An entry point of the group ``tsfm.commands`` has the words of its command as its name, joined by dots, and a function
as its value: ``"image.predict" = "tsfm_vision.commands.image:predict"``. Help reads the function's source and imports
nothing, so it is quick whatever the package needs.
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
    """The words of each command that a package adds, and its entry point.

    Args:
        own: the words of our commands, which no other package may take.
    """
    taken = {word for name in own for word in (name.replace(" ", "."), name.split()[0])}
    return {entry.name.replace(".", " "): entry for entry in entry_points(GROUP, taken)}


def added_function(name: str) -> Callable[..., object]:
    """The function of a command by the command's words.

    Raises:
        InputError: no installed package has it, or it cannot be imported.
    """
    entry = added_commands(()).get(name)
    if entry is None:
        raise InputError(
            f"expected an installed package with the command tsfm {name}, found none: pip install 'tsfm-suite[vision]'"
        )
    return function_of(entry)


def function_of(entry: EntryPoint) -> Callable[..., object]:
    """The function of a command, imported.

    Raises:
        InputError: it cannot be imported, or is no function.
    """
    what = f"the command tsfm {entry.name.replace('.', ' ')}"
    function = load(entry, what)
    if not callable(function):
        raise entry_point_error(entry, what, f"a {type(function).__name__}")
    return function


def summary(entry: EntryPoint) -> str:
    """The first line of a command's docstring, as a line of help; if there is none, the name of the package."""
    _, function = definition(entry)
    line = (ast.get_docstring(function) or "").partition("\n")[0].rstrip(".") if function else ""
    return textwrap.shorten(line[:1].lower() + line[1:], 64, placeholder=" ...") or f"added by {package_of(entry)}"


def outline(entry: EntryPoint) -> Callable[..., object] | None:
    """A command's function with its options and docstring but without its body, made from the source alone.

    None if that needs more than the standard library: then only the function itself can tell its options.
    """
    tree, function = definition(entry)
    if function is None or function.decorator_list or ast.get_docstring(function) is None:
        return None
    kept = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom) and standard(node)]
    function = copy.copy(function)
    function.body = function.body[:1]
    scope: dict[str, typing.Any] = {}
    try:
        exec(compile(ast.Module([*kept, function], []), entry.module, "exec"), scope)
        typing.get_type_hints(scope[entry.attr])
    except Exception:  # a type or a default of the package's own
        return None
    return scope[entry.attr]


def standard(node: ast.Import | ast.ImportFrom) -> bool:
    """Whether a statement imports from the standard library alone."""
    if isinstance(node, ast.ImportFrom):
        return node.level == 0 and str(node.module).split(".")[0] in sys.stdlib_module_names
    return all(alias.name.split(".")[0] in sys.stdlib_module_names for alias in node.names)


def definition(entry: EntryPoint) -> tuple[ast.Module, ast.FunctionDef | None]:
    """The source of an entry point's module and, in it, its function; None if it is not there to read."""
    tree = source(entry.module)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == entry.attr]
    return tree, functions[-1] if functions else None


@functools.cache
def source(module: str) -> ast.Module:
    """The source of a module that is not imported; an empty one if it is not there to read."""
    top, *inner = module.split(".")
    try:
        spec = importlib.util.find_spec(top)  # of an inner module, it would import the package
        if spec is None:
            return ast.Module([], [])
        places = [Path(str(spec.origin))]
        if inner:
            folders = [Path(folder, *inner) for folder in spec.submodule_search_locations or ()]
            places = [place for f in folders for place in (f / "__init__.py", f.with_name(f.name + ".py"))]
        return ast.parse(next(place for place in places if place.is_file()).read_text(encoding="utf-8"))
    except (ImportError, OSError, StopIteration, SyntaxError, ValueError):
        return ast.Module([], [])
