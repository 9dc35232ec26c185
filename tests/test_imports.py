"""Imports run one way, each heavy dependency has its doors, and ``import tsfm`` is light."""

import functools
import graphlib
import importlib
import inspect
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from sources import MODULES, PACKAGES, ROOT, imported

from tsfm.models.registry import OWN

# Of tsfm, vision may import these rooms alone.
SHARED_WITH_VISION = ("tsfm.attention", "tsfm.models", "tsfm.nn", "tsfm.training", "tsfm.weights")
# The rooms of a package, lowest first: a room imports those before it.
ORDER = {
    "tsfm": [
        *("configs", "attention", "nn", "models", "weights"),
        *("training", "inference", "reports", "scaling", "commands"),
    ],
    "tsfm_data": ["io", "windows", "synthetic", "corpus", "evaluation", "images"],
    "tsfm_vision": ["backbones", "weights", "evaluation", "forecasting", "training", "commands"],
}
VISION_LIGHTNING = ("tsfm_vision.training",)
TSFM_LIGHTNING = ("tsfm.training.task", "tsfm.training.callbacks", "tsfm.training.checkpoints", "tsfm.commands")
# A heavy dependency -> the modules that may import it at all, and those that may do so before anything is called.
DOORS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "xformers": (("tsfm.attention", "tsfm.commands.health"), ()),
    "mslk": (("tsfm.attention",), ()),
    "timm": (("tsfm_vision",), ("tsfm_vision",)),
    "gluonts": (("tsfm_data", "tsfm.inference.adapters"), ("tsfm.inference.adapters",)),
    "matplotlib": (
        (
            "tsfm.reports.figures",
            "tsfm.scaling.figures",
            "tsfm.commands.data_gallery",
            "tsfm_vision.evaluation.pictures",
        ),
        ("tsfm.reports.figures", "tsfm.scaling.figures"),
    ),
    "huggingface_hub": (("tsfm.weights.hub",), ("tsfm.weights.hub",)),
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
            "tsfm.inference.embedding",
            "tsfm.inference.classification",
            "tsfm.inference.partitions",
            "tsfm.reports.figures",
            "tsfm.reports.html",
            "tsfm.commands",
            "tsfm.scaling",
        ),
        (
            "tsfm_data",
            "tsfm.inference.predictors",
            "tsfm.inference.embedding",
            "tsfm.inference.classification",
            "tsfm.inference.partitions",
            "tsfm.commands",
            "tsfm.scaling",
        ),
    ),
    "jsonargparse": (("tsfm.commands",), ("tsfm.commands",)),
}


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


def room_of(name: str) -> str | None:
    """The room that a module or a name lies in; None for what stands at the top of a package."""
    package, *rest = name.split(".")
    return f"{package}.{rest[0]}" if rest and rest[0] in ORDER.get(package, ()) else None


@pytest.mark.parametrize("name", [name for name in MODULES if room_of(name)])
def test_when_a_module_imports_another_room_then_it_is_a_lower_one_and_the_name_is_public(name: str) -> None:
    mine = str(room_of(name))
    for target, _ in imported(MODULES[name]):
        other = room_of(target)
        if other is None or other == mine:
            continue
        package, room = other.split(".")
        if package == mine.split(".")[0]:
            order = ORDER[package]
            assert order.index(room) < order.index(mine.split(".")[1]), f"{name} imports {target}: a higher room"
        if target == other:
            continue  # the room itself: its public names are taken from it
        assert target.count(".") == 2, f"{name} imports {target}: expected a name that {other} exports"
        assert target.split(".")[2] in public(other), f"{name} imports {target}, which {other} does not export"


@functools.cache
def public(room: str) -> set[str]:
    """What a room exports: ``__all__`` and its modules' names."""
    module = importlib.import_module(room)
    return {*module.__all__, *(found.name for found in pkgutil.iter_modules(module.__path__))}


@pytest.mark.parametrize("room", [f"{p}.{r}" for p, rooms in ORDER.items() for r in rooms if r != "commands"])
def test_when_a_room_is_opened_then_it_says_what_it_is_for_and_every_public_name_is_there(room: str) -> None:
    module = importlib.import_module(room)
    assert (module.__doc__ or "").strip()
    assert module.__all__
    modules = {found.name for found in pkgutil.iter_modules(module.__path__)}
    for name in module.__all__:
        assert getattr(module, name) is not None
        assert name not in modules or inspect.ismodule(getattr(module, name)), f"{room}.{name} is a module, too"


def test_when_all_imports_are_followed_then_no_circle_is_left() -> None:
    edges: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        for target, _ in imported(path):
            places = [target, target.rpartition(".")[0]]
            place = next((p for p in places if p in MODULES), None)
            if place is not None and place in PACKAGES:
                continue  # names of a package's top are imported when they are asked for
            if place is not None and hasattr(importlib.import_module(place), "__path__") and place == places[1]:
                value = getattr(importlib.import_module(place), target.rpartition(".")[2], None)
                place = getattr(value, "__module__", place)  # where the name that a room exports really is
            if place is not None and place != name and place in MODULES:
                edges.setdefault(name, set()).add(place)
    sorter = graphlib.TopologicalSorter(edges)
    sorter.prepare()  # raises CycleError, which lists the modules


MODELS = sorted(place.split(":")[0] for place in OWN.values())


@pytest.mark.parametrize("name", MODELS)
def test_when_a_model_is_read_then_it_imports_no_other_model(name: str) -> None:
    others = tuple(other for other in MODELS if other != name)
    for target, _ in imported(MODULES[name]):
        assert not under(target, others), f"{name} imports {target}"


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
    heavy = {
        "pytorch_lightning",
        "lightning",
        "timm",
        "gluonts",
        "matplotlib",
        "xformers",
        "mslk",
        "pandas",
        "statsforecast",
    }
    assert not heavy & loaded_after("import tsfm")


HELP = [["--help"], ["--version"], ["data", "--help"], ["forecast", "--help"], ["image", "predict", "--help"]]


@pytest.mark.parametrize("words", HELP, ids=" ".join)
def test_when_help_is_asked_for_then_nothing_heavy_is_loaded(words: list[str]) -> None:
    code = f"from tsfm.commands.cli import main\ntry:\n    main({words})\nexcept SystemExit as end:\n    "
    code += "assert not end.code"
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
        "timm",
        "tsfm_vision",
    }
    assert not heavy & loaded_after(code)


@pytest.mark.slow
def test_when_a_released_model_is_loaded_then_the_compiler_is_not() -> None:
    code = "import tsfm\ntsfm.load('tsfm-encoder-small')"
    assert "torch" in loaded_after(code)
    assert not {"torch._dynamo", "torch._inductor"} & loaded_after(code)


@pytest.mark.parametrize("path", sorted((ROOT / "tests").glob("*.py")), ids=lambda path: path.name)
def test_when_a_test_needs_a_helper_then_it_is_not_from_another_test(path: Path) -> None:
    assert not [name for name, _ in imported(path) if name.startswith("test_")]
