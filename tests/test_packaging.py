"""The installed package, the wheel and the bare checkout hold the same: every package and every data file."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from setuptools import find_packages
from sources import MODULES, PACKAGES, imported
from wheel import build_wheel

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ELSEWHERE = {"chronos": "chronos-forecasting", "mslk": "mslk-cuda"}  # a module not installed here -> its distribution
FOLDERS = {".": "tsfm", "data": "tsfm_data", "vision": "tsfm_vision"}
SUFFIXES = (".py", ".json", ".yaml", ".html", ".css", ".j2", ".safetensors", ".typed")


def expected_files() -> set[str]:
    """What an installation must hold, by its path in the wheel."""
    found = set()
    for folder, package in FOLDERS.items():
        for path in (ROOT / folder / package).rglob("*"):
            if path.suffix in SUFFIXES or path.name == "py.typed":
                found.add(str(path.relative_to(ROOT / folder)))
    return found


def test_when_packages_are_found_then_no_folder_with_modules_is_left_out() -> None:
    setting = PROJECT["tool"]["setuptools"]["packages"]["find"]
    found = {p for folder in setting["where"] for p in find_packages(str(ROOT / folder), include=setting["include"])}
    expected = {str(Path(name).parent).replace("/", ".") for name in expected_files() if name.endswith(".py")}
    assert found == expected
    assert {"tsfm", "tsfm.models", "tsfm.commands", "tsfm_data", "tsfm_vision"} <= found


def test_when_a_third_party_package_is_imported_then_it_is_a_declared_dependency() -> None:
    project = PROJECT["project"]
    extras = [requirement for extra in project["optional-dependencies"].values() for requirement in extra]
    declared = {plain(requirement) for requirement in [*project["dependencies"], *extras]}
    distributions = importlib.metadata.packages_distributions()
    for name, path in MODULES.items():
        for target, _ in imported(path):
            top = target.split(".")[0]
            if top not in sys.stdlib_module_names and top not in PACKAGES:
                provided = {plain(distribution) for distribution in distributions.get(top, [ELSEWHERE.get(top, top)])}
                assert provided & declared, f"{name} imports {top}, which pyproject.toml does not declare"


def plain(requirement: str) -> str:
    """The normalised name of the project that a requirement asks for."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found
    return re.sub(r"[-_.]+", "-", found[0]).lower()


@pytest.mark.slow
def test_when_the_checkout_is_not_installed_then_it_imports(tmp_path: Path) -> None:
    for folder, package in FOLDERS.items():
        shutil.copytree(
            ROOT / folder / package, tmp_path / folder / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    third_party = [p for p in sys.path if "site-packages" in p]
    paths = [str(tmp_path / folder) for folder in FOLDERS]
    code = (
        f"import sys; sys.path[:0] = {paths!r}; sys.path += {third_party!r}\n"
        "import tsfm, tsfm_data, tsfm_vision, tsfm_data.io.catalog, tsfm.commands.cli\n"
        f"assert all(m.__file__.startswith({str(tmp_path)!r}) for m in (tsfm, tsfm_data, tsfm_vision))\n"
        "assert 'ETTh1' in tsfm_data.io.catalog.names()\n"
        "tsfm.commands.cli.main(['--version'])"
    )
    # -S leaves the editable installation out, which would answer in place of the copy.
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], text=True, capture_output=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"tsfm {PROJECT['project']['version']}\n"


@pytest.mark.slow
def test_when_a_wheel_is_built_then_it_holds_every_package_and_data_file(tmp_path: Path) -> None:
    with zipfile.ZipFile(build_wheel(tmp_path)) as archive:
        inside = set(archive.namelist())
        entry = next(name for name in inside if name.endswith("entry_points.txt"))
        entries = archive.read(entry).decode()
        assert "tsfm = tsfm.commands.cli:main" in entries
        assert "image.predict = tsfm_vision.commands.image:predict" in entries
    assert expected_files() <= inside
    strays = {name.split("/")[0] for name in inside} - set(FOLDERS.values())
    assert all(name.endswith(".dist-info") for name in strays), strays
