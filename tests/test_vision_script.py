"""Backbones compile with TorchScript, and what was compiled and kept in a file repeats them."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("timm")

from compile_backbones import MODELS, SIDE


@pytest.fixture(scope="module")
def differences() -> dict[tuple[str, int], float]:
    words = [sys.executable, str(Path(__file__).parent / "compile_backbones.py")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    return {(name, int(size)): float(difference) for name, size, difference in rows}


@pytest.mark.slow
@pytest.mark.parametrize("size", [SIDE, SIDE + 32])
@pytest.mark.parametrize("name", MODELS)
def test_when_a_backbone_is_compiled_then_it_repeats_the_model(
    name: str, size: int, differences: dict[tuple[str, int], float]
) -> None:
    assert differences[name, size] <= 1e-5
