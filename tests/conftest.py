"""Shared fixtures: the reference data and golden files where they are at hand, a skip (counted) where not."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def shared_folder(variable: str, default: str) -> Path:
    """The folder that ``variable`` names, else ``default`` relative to the repository."""
    return Path(os.environ.get(variable) or ROOT / default).resolve()


DATA = shared_folder("TSFM_DATA", "../shared/data")
GOLDEN = shared_folder("TSFM_GOLDEN", "../shared/golden")


def golden_cases(family: str) -> list[Path]:
    """The JSON file of every golden case of a family, found on disk; empty where the golden folder is absent."""
    return sorted((GOLDEN / family).glob("*.json"))


@pytest.fixture(autouse=True)
def isolated_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests never write to the user's cache and never use the network by accident."""
    monkeypatch.setenv("TSFM_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def data_folder(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of real data sets; also the first place that the catalogue searches."""
    if not DATA.is_dir():
        pytest.skip(f"no data sets at {DATA} (set TSFM_DATA)")
    monkeypatch.setenv("TSFM_DATA", str(DATA))
    return DATA


@pytest.fixture
def golden_folder() -> Path:
    """The folder of outputs of the original implementations."""
    if not GOLDEN.is_dir():
        pytest.skip(f"no golden files at {GOLDEN} (set TSFM_GOLDEN)")
    return GOLDEN


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the tests that should carry ``slow``: over ten seconds, twice that to allow for a busy machine."""
    for report in terminalreporter.getreports("passed"):
        if report.when == "call" and report.duration > 20 and "slow" not in report.keywords:
            terminalreporter.write_line(f"warning: {report.nodeid} took {report.duration:.0f} s and is not marked slow")
