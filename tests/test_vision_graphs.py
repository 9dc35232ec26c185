"""Backbones are exported, compiled, quantised, counted and differentiated as PyTorch's own models are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("timm")

from graph_backbones import STEPS
from tiny_backbones import SMALL

ROOT = Path(__file__).resolve().parent.parent
# The largest difference, as a share: second derivatives are compared with differences of first ones.
LIMITS = {"second derivative": 1e-4, "count": 0.0}
# timm's TNT, whose blocks these are, takes no empty batch either.
REFUSED = {("tsfm_tnt_s_patch16_224", "no image")}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_when_pytorch_transforms_a_backbone_then_it_stays_the_same(name: str) -> None:
    pytest.importorskip("onnxruntime")
    path = os.pathsep.join(str(ROOT / folder) for folder in (".", "data", "vision", "tests"))
    words = [sys.executable, str(ROOT / "tests/graph_backbones.py"), name]
    done = subprocess.run(words, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.split("\t") for line in done.stdout.splitlines() if line.startswith(f"{name}\t")]
    assert [step for _, step, _ in rows] == list(STEPS)
    for _, step, said in rows:
        if (name, step) in REFUSED:
            continue
        assert said.replace(".", "").replace("e-", "").isdigit(), f"{step}: {said}"
        assert float(said) <= LIMITS.get(step, 1e-4), step
