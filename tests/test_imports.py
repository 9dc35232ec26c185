"""Imports run one way, each heavy dependency has its doors, and ``import tsfm`` is light."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"tsfm": ROOT / "tsfm", "tsfm_data": ROOT / "data/tsfm_data", "tsfm_vision": ROOT / "vision/tsfm_vision"}
# Of tsfm, vision may import these alone.
SHARED_WITH_VISION = (
    "tsfm.attention.dispatch",
    "tsfm.nn.layers",
    "tsfm.nn.memory",
    "tsfm.training.optim",
    "tsfm.weights.pretrained",
)
VISION_LIGHTNING = ("tsfm_vision.training",)
TSFM_LIGHTNING = ("tsfm.training.task", "tsfm.training.callbacks", "tsfm.commands")
# A heavy dependency -> the modules that may import it at all, and those that may do so before anything is called.
DOORS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "xformers": (("tsfm.attention.dispatch", "tsfm.commands.health"), ()),
    "timm": (("tsfm_vision",), ("tsfm_vision",)),
    "gluonts": (("tsfm_data", "tsfm.inference.adapters"), ("tsfm.inference.adapters",)),
    "matplotlib": (
        (
            "tsfm.reports.figures",
            "tsfm.scaling.figures",
            "tsfm.commands.data_gallery",
            "tsfm_vision.evaluation.pictures",
        ),
        (),
    ),
    "huggingface_hub": (("tsfm.weights.hub",), ()),
    "statsforecast": (("tsfm_data.evaluation.baselines",), ()),
    "vega_datasets": (("tsfm.commands.demo",), ("tsfm.commands.demo",)),
    "pytorch_lightning": (
        ("tsfm_data.windows.datamodule", "tsfm_data.corpus.datamodule", *TSFM_LIGHTNING, *VISION_LIGHTNING),
        ("tsfm_data.windows.datamodule", "tsfm_data.corpus.datamodule", *TSFM_LIGHTNING, *VISION_LIGHTNING),
    ),
    "pandas": (
        (
            "tsfm_data",
            "tsfm.inference.predictors",
            "tsfm.reports.figures",
            "tsfm.reports.page",
            "tsfm.commands",
            "tsfm.scaling",
        ),
        ("tsfm_data", "tsfm.commands", "tsfm.scaling.runs.ledger"),
    ),
    "jsonargparse": (("tsfm.commands",), ("tsfm.commands",)),
}


def modules() -> Iterator[tuple[str, Path]]:
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join([package, *(part for part in parts if part != "__init__")]), path


MODULES = dict(modules())


def imported(path: Path) -> Iterator[tuple[str, bool]]:
    """Dotted names that a file imports, and whether it does so when it is imported itself.

    What stands under ``if TYPE_CHECKING`` is not imported at all.
    """
    tree = ast.parse(path.read_text())
    skipped, late = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            skipped.update(id(inner) for part in node.body for inner in ast.walk(part))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            late.update(id(inner) for inner in ast.walk(node))
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) not in late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from ((f"{node.module}.{alias.name}", id(node) not in late) for alias in node.names)


def under(name: str, parents: tuple[str, ...]) -> bool:
    return any(name == parent or name.startswith(parent + ".") for parent in parents)


@pytest.mark.parametrize("name", MODULES)
def test_when_a_module_imports_a_sibling_package_then_it_is_one_that_it_may_know(name: str) -> None:
    for target, _ in imported(MODULES[name]):
        package = target.split(".")[0]
        if package not in PACKAGES or package == name.split(".")[0]:
            continue
        allowed = {"tsfm": ("tsfm_data",), "tsfm_data": (), "tsfm_vision": ("tsfm_data", *SHARED_WITH_VISION)}
        assert under(target, allowed[name.split(".")[0]]), f"{name} imports {target}"


@pytest.mark.parametrize("name", [name for name in MODULES if ".models." in name])
def test_when_a_model_is_read_then_it_imports_no_other_model(name: str) -> None:
    for target, _ in imported(MODULES[name]):
        assert not under(target, ("tsfm.models",)), f"{name} imports {target}"


@pytest.mark.parametrize("dependency", DOORS)
def test_when_a_heavy_dependency_is_imported_then_it_is_through_its_door(dependency: str) -> None:
    anywhere, early = DOORS[dependency]
    for name, path in MODULES.items():
        for target, now in imported(path):
            if under(target, (dependency,)):
                assert under(name, anywhere), f"{name} imports {target}"
                assert not now or under(name, early), f"{name} imports {target} before it is needed"


def loaded_after(code: str) -> set[str]:
    """Modules in a fresh interpreter after some code."""
    path = os.pathsep.join(str(folder.parent) for folder in PACKAGES.values())
    script = f"{code}\nimport sys\nprint('LOADED', *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path},
        text=True,
        capture_output=True,
        check=True,
    )
    return set(done.stdout.split("LOADED")[1].split())


def test_when_tsfm_is_imported_then_nothing_heavy_is() -> None:
    heavy = {"pytorch_lightning", "lightning", "timm", "gluonts", "matplotlib", "xformers", "pandas", "statsforecast"}
    assert not heavy & loaded_after("import tsfm")


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["data", "--help"], ["forecast", "--help"]], ids=" ".join)
def test_when_help_is_asked_for_then_nothing_heavy_is_loaded(words: list[str]) -> None:
    code = f"from tsfm.commands.cli import main\ntry:\n    main({words})\nexcept SystemExit as end:\n    assert not end.code"
    heavy = {
        "torch",
        "numpy",
        "pandas",
        "pyarrow",
        "pytorch_lightning",
        "gluonts",
        "matplotlib",
        "jsonargparse",
        "yaml",
    }
    assert not heavy & loaded_after(code)


def test_when_a_released_model_is_loaded_then_the_compiler_is_not() -> None:
    code = "import tsfm\ntsfm.load('tsfm-encoder-small')"
    assert "torch" in loaded_after(code)
    assert not {"torch._dynamo", "torch._inductor"} & loaded_after(code)
