"""What ``make shape`` counts, on a small generated package."""

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = "\n".join(f"    total += {number} * first" for number in range(12))
LAZY = '"""Lazy."""\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tsfm.one import add\n'
FILES = {
    "pyproject.toml": '[project]\ndependencies = ["numpy>=1.26", "torch"]\n',
    "tsfm/__init__.py": LAZY,
    "tsfm/one.py": f'from tsfm import two\n\n\ndef add(first, total=0):\n    """Add."""\n{BLOCK}\n    return two\n',
    "tsfm/two.py": f"def late(first, total):\n    from tsfm.one import add\n\n    # again\n{BLOCK}\n    return add\n",
    "tsfm/three.py": "from tsfm import two\nfrom tsfm.one import add\n",
}


def test_when_a_package_has_one_circle_one_duplicate_and_one_late_import_then_these_are_counted(tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    shape = runpy.run_path(str(ROOT / "benchmarks/shape.py"))["count"](tmp_path)
    assert shape["circle members"] == ["tsfm.one, tsfm.two"]
    assert shape["duplicate places"] == ["tsfm.one:6 and tsfm.two:5"]
    assert (shape["import circles"], shape["duplicate blocks"], shape["late imports"]) == (1, 1, 1)
    assert (shape["source files"], shape["modules at the top of tsfm"], shape["runtime dependencies"]) == (4, 3, 2)
    assert shape["public functions with docstrings, %"] == 50.0
    assert (shape["longest function"], shape["longest function, lines"]) == ("late", 17)
