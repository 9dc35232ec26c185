"""The shape of the code as a Markdown table: sizes, modules, late imports, import circles, duplicates, start-up time.

make shape
python benchmarks/shape.py [--root DIR] [--compare DIR_OR_JSON] [--json FILE] [--tests]

It needs only the standard library and works on any checkout with the packages tsfm, data/tsfm_data and
vision/tsfm_vision. So an older checkout can fill the column "before".
"""

import argparse
import ast
import io
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
import tokenize
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGES = ("tsfm", "data/tsfm_data", "vision/tsfm_vision")
BLOCK = 12  # lines that make a duplicate
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
LATE = (*FUNCTIONS, ast.Lambda)
IMPORTS = (ast.Import, ast.ImportFrom)
LISTS = ("circle members", "duplicate places")


def package_files(root: Path) -> dict[str, Path]:
    """Dotted name -> file of every module of the packages; an ``__init__`` has the name of its folder."""
    modules = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to((root / package).parent).with_suffix("").parts
            modules[".".join(part for part in parts if part != "__init__")] = path
    return modules


def line_count(paths: list[Path]) -> int:
    """Lines of all files together, with blank lines and comments."""
    return sum(len(path.read_text().splitlines()) for path in paths)


def inside(tree: ast.AST, late: bool = False, typing: bool = False) -> Iterator[tuple[ast.AST, bool, bool]]:
    """Every node, whether it is in a function, and whether it is under ``if TYPE_CHECKING``."""
    for child in ast.iter_child_nodes(tree):
        only_typing = typing or (
            isinstance(tree, ast.If) and "TYPE_CHECKING" in ast.unparse(tree.test) and child in tree.body
        )
        yield child, late, only_typing
        yield from inside(child, late or isinstance(child, LATE), only_typing)


def targets(node: ast.AST, name: str, is_folder: bool) -> list[str]:
    """Dotted names that a statement imports, or a call with a literal name such as ``import_module("a.b")``."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        parents = name.split(".")[: len(name.split(".")) - node.level + is_folder] if node.level else []
        base = ".".join([*parents, *([node.module] if node.module else [])])
        return [f"{base}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
        return [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)]
    return []


def import_graph(modules: dict[str, Path], trees: dict[str, ast.Module]) -> dict[str, set[str]]:
    """Module -> modules that it imports, at the top of the file or late.

    A folder's ``__init__`` may export a name lazily and import it under ``TYPE_CHECKING``. Such a name counts as an
    import of the module that defines it; every other name of the ``__init__`` counts as an import of the ``__init__``.
    """
    edges: dict[str, set[str]] = {name: set() for name in modules}
    handed_on: dict[str, str] = {}
    uses = defaultdict(list)
    for name, tree in trees.items():
        is_folder = modules[name].name == "__init__.py"
        for node, _, typing in inside(tree):
            for target in targets(node, name, is_folder):
                if not typing:
                    uses[name].append(target)
                elif is_folder:
                    handed_on[f"{name}.{target.rpartition('.')[2]}"] = target
    for name, names in uses.items():
        for target in names:
            while target not in modules and target in handed_on:
                target = handed_on[target]
            module = target if target in modules else target.rpartition(".")[0]
            if module in modules and module != name:
                edges[name].add(module)
    return edges


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one module (Tarjan)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    components = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for target in sorted(edges[name]):
            if target not in order:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], order[target])
        if low[name] == order[name]:
            start = stack.index(name)
            components.append(sorted(stack[start:]))
            del stack[start:]

    for name in sorted(edges):
        if name not in order:
            visit(name)
    return sorted(component for component in components if len(component) > 1)


def code_lines(path: Path, tree: ast.Module) -> list[tuple[int, str]]:
    """Numbered lines without blank lines, comments, docstrings and imports; runs of white space become one blank."""
    left_out = set()
    for node in ast.walk(tree):
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        if text or isinstance(node, IMPORTS):
            left_out.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    text = path.read_text()
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            lines[token.start[0] - 1] = lines[token.start[0] - 1][: token.start[1]]
    return [(n, " ".join(line.split())) for n, line in enumerate(lines, 1) if line.strip() and n not in left_out]


def duplicates(files: list[list[tuple[int, str]]]) -> list[tuple[int, int, int, int]]:
    """Pairs of places with at least ``BLOCK`` equal lines: file and line of both; each block counts once."""
    seen = defaultdict(list)
    pairs = []
    for file, lines in enumerate(files):
        for start in range(len(lines) - BLOCK + 1):
            key = tuple(line for _, line in lines[start : start + BLOCK])
            for other, first in seen[key]:
                overlap = other == file and start - first < BLOCK
                goes_on = start and first and files[other][first - 1][1] == lines[start - 1][1]
                if not overlap and not goes_on:
                    pairs.append((other, files[other][first][0], file, lines[start][0]))
            seen[key].append((file, start))
    return pairs


def public_functions(tree: ast.AST) -> Iterator[ast.AST]:
    """Functions of a module and methods of its public classes, without those whose names begin with an underscore."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, FUNCTIONS) and not node.name.startswith("_"):
            yield node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node)


def count(root: Path) -> dict[str, Any]:
    """All numbers that need no run of the code."""
    modules = package_files(root)
    trees = {name: ast.parse(path.read_text()) for name, path in modules.items()}
    sizes = {name: line_count([path]) for name, path in modules.items()}
    largest = max(sizes, key=lambda name: sizes[name])
    shape: dict[str, Any] = {"source files": len(sizes), "source lines": sum(sizes.values())}
    for folder in ("benchmarks", "tests"):
        paths = sorted((root / folder).rglob("*.py"))
        shape |= {f"files of {folder}": len(paths), f"lines of {folder}": line_count(paths)}
    shape["lines of source and benchmarks"] = shape["source lines"] + shape["lines of benchmarks"]
    shape |= {"median file, lines": statistics.median(sizes.values())}
    shape |= {"largest file, lines": sizes[largest], "largest file": largest}
    direct = [name for name, path in modules.items() if name.count(".") == 1 and not path.stem.startswith("__")]
    top = Counter(name.split(".")[0] for name in direct)
    for package in PACKAGES:
        name = package.split("/")[-1]
        rooms = {path.parent for path in (root / package).rglob("*.py")} - {root / package}
        shape |= {f"modules at the top of {name}": top[name], f"folders in {name}": len(rooms)}
    nodes = [entry for tree in trees.values() for entry in inside(tree)]
    shape["late imports"] = sum(isinstance(node, IMPORTS) and late and not typing for node, late, typing in nodes)
    import_circles = circles(import_graph(modules, trees))
    shape |= {"import circles": len(import_circles), "modules in circles": sum(map(len, import_circles))}
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    shape["runtime dependencies"] = len(project.get("dependencies", []))
    names = list(modules)
    pairs = duplicates([code_lines(modules[name], trees[name]) for name in names])
    shape["duplicate blocks"] = len(pairs)
    functions = [(node.end_lineno - node.lineno + 1, node.name) for node, _, _ in nodes if isinstance(node, FUNCTIONS)]
    shape |= dict(zip(("longest function, lines", "longest function"), max(functions), strict=True))
    public = [node for tree in trees.values() for node in public_functions(tree)]
    documented = sum(ast.get_docstring(node) is not None for node in public)
    shape["public functions with docstrings, %"] = round(100 * documented / max(len(public), 1), 1)
    places = [f"{names[a]}:{line} and {names[b]}:{other}" for a, line, b, other in pairs]
    return shape | {"circle members": [", ".join(names) for names in import_circles], "duplicate places": places}


def seconds(root: Path, words: list[str], times: int = 5) -> float:
    """Median seconds of fresh interpreters with the packages of ``root``, without the first one, which may compile."""
    path = os.pathsep.join(str((root / package).parent) for package in PACKAGES)
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    taken = []
    for _ in range(times + 1):
        begin = time.perf_counter()
        subprocess.run([sys.executable, *words], cwd=root, env=environment, check=True, stdout=subprocess.DEVNULL)
        taken.append(time.perf_counter() - begin)
    return round(statistics.median(taken[1:]), 3)


def test_seconds(root: Path) -> float | str:
    """Seconds of the pytest command of ``make test``, read from the Makefile."""
    recipe = (root / "Makefile").read_text().split("\ntest:")[1].split("\n\n")[0]
    words = shlex.split(next(line for line in recipe.splitlines() if "-m pytest" in line).split("-m pytest")[1])
    begin = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    status = subprocess.run([sys.executable, "-m", "pytest", *words], cwd=root, env=environment).returncode
    taken = round(time.perf_counter() - begin, 1)
    return taken if status == 0 else f"{taken} (status {status})"


def measure(root: Path, tests: bool) -> dict[str, Any]:
    """All numbers of one checkout."""
    shape = count(root)
    shape["seconds of import tsfm"] = seconds(root, ["-c", "import tsfm"])
    shape["seconds of tsfm --help"] = seconds(root, ["-m", "tsfm", "--help"])
    return shape | ({"seconds of make test": test_seconds(root)} if tests else {})


def table(columns: dict[str, dict[str, Any]]) -> str:
    """Markdown: one row per number and one column per checkout, then the modules of each import circle."""
    rows = dict.fromkeys(key for shape in columns.values() for key in shape if key not in LISTS)
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for key in rows:
        values = [shape.get(key, "") for shape in columns.values()]
        shown = [f"{value:,}" if isinstance(value, int) else str(value) for value in values]
        lines.append(f"| {key} | {' | '.join(shown)} |")
    for title, shape in columns.items():
        lines += [f"\nCircle ({title}): {members}" for members in shape["circle members"]]
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description="The shape of the code as a Markdown table.")
    parser.add_argument(
        "--root", type=Path, default=Path(__file__).resolve().parent.parent, help="the checkout to measure"
    )
    parser.add_argument("--compare", type=Path, help='a checkout, or a --json file of one, for the column "before"')
    parser.add_argument("--json", type=Path, help="file for the numbers")
    parser.add_argument("--tests", action="store_true", help="also run the tests and report their seconds")
    options = parser.parse_args()
    after = measure(options.root.resolve(), options.tests)
    columns = {"now": after}
    if options.compare is not None:
        is_file = options.compare.is_file()
        before = json.loads(options.compare.read_text())["now"] if is_file else None
        columns = {"before": before or measure(options.compare.resolve(), options.tests), "after": after}
    print(table(columns))
    if options.json is not None:
        options.json.write_text(json.dumps(columns, indent=1) + "\n")


if __name__ == "__main__":
    main()
