"""Another package adds a forecaster, a command and a backbone; one that cannot be imported breaks nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOYS = '''
"""What another package adds."""

from pathlib import Path

from tsfm.models import ITransformer


class Toy(ITransformer):
    model_type = "toy"


def greet(name: str, *, times: int = 1, output: Path | None = None) -> None:
    """Greet someone.

    Args:
        name: who.
        times: how often.
        output: where to.
    """
    print(f"hello {name} " * times)
'''
BACKBONES = """
from timm.models import build_model_with_cfg, register_model
from tsfm_vision.backbones import PoolFormer

@register_model
def toy_former(pretrained=False, **kwargs):
    sizes = {"depths": [1, 1], "dims": [8, 8], "mlp_ratios": [2, 2], "mixers": ["pool", "pool"]}
    return build_model_with_cfg(PoolFormer, "toy_former", pretrained, **sizes, **kwargs)
"""
USE_MODEL = """
from tsfm import load
from tsfm.models import MODELS, model_class, model_classes
from tsfm.weights import save
from tsfm_data.errors import InputError

kind = model_class("toy")
save(kind(24, 4, type(kind(24, 4).config)(d_model=8, d_ff=8, heads=2)), "saved")
print(type(load("saved").predictor).__name__)
print(sorted(model_classes()) == sorted(set(MODELS) - {"broken", "odd"}), MODELS["decoder"].split(":")[1])
try:
    model_class("broken")
except InputError as error:
    print(error)
"""
USE_BACKBONE = """
import timm, torch, tsfm_vision
from tsfm_vision.weights import TrainedOn, load, save

save(timm.create_model("toy_former", num_classes=3), "saved", TrainedOn("toys", ("a", "b", "c"), 3))
model, classes = load("saved")
print(model(torch.zeros(1, 3, 32, 32)).shape, classes)
"""


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """Two packages as pip would leave them; the second has what is broken, and names that are taken."""
    (tmp_path / "toys.py").write_text(TOYS)
    (tmp_path / "toy_backbones.py").write_text(BACKBONES)
    points = {
        "toys": {
            "tsfm.models": "toy = toys:Toy",
            "tsfm.commands": "greet = toys:greet\nimage.greet = toys:greet\ndraw = missing_art:draw",
            "tsfm.backbones": "toys = toy_backbones",
        },
        "yells": {
            "tsfm.models": "toy = yells:Toy\ndecoder = toys:Toy\nbroken = missing_package:Model\nodd = toys",
            "tsfm.commands": "shout = missing_package:shout\ndata.list = toys:greet\nimage.predict = toys:greet",
            "tsfm.backbones": "broken = missing_package",
        },
    }
    for name, groups in points.items():
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        extra = "Provides-Extra: art\nRequires-Dist: missing-art>=1; extra == 'art'\n"
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{extra}")
        text = "".join(f"[{group}]\n{lines}\n" for group, lines in groups.items())
        (info / "entry_points.txt").write_text(text)
    return tmp_path


def python(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder), *sys.path])
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        text=True,
        capture_output=True,
    )


def tsfm(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return python(folder, "-m", "tsfm", *words)


def test_when_another_package_adds_a_forecaster_then_it_is_a_model_like_ours(packages: Path) -> None:
    done = python(packages, "-c", USE_MODEL)
    assert done.returncode == 0, done.stderr
    kind, listed, error = done.stdout.splitlines()
    assert (kind, listed) == ("Toy", "True Decoder")
    assert error.startswith(
        "expected the model type broken in missing_package:Model (entry point of tsfm.models), found"
    )
    assert "No module named 'missing_package'" in error
    warnings = [line for line in done.stderr.splitlines() if "of tsfm.backbones" not in line]  # of our image package
    assert warnings == [
        "warning: decoder of tsfm.models is in tsfm-suite and in yells: that of tsfm-suite is used",
        "warning: toy of tsfm.models is in toys and in yells: that of toys is used",
        f"warning: {error}",
        "warning: expected the model type odd in toys (entry point of tsfm.models), found a module, no Forecaster: "
        "update or uninstall yells",
    ]


def test_when_another_package_adds_a_command_then_it_is_in_help_and_runs(packages: Path) -> None:
    said = tsfm(packages, "--help")
    assert said.returncode == 0, said.stderr
    lines = [line.split(maxsplit=3) for line in said.stdout.splitlines()]
    assert ["tsfm", "image", "greet", "greet someone"] in lines
    assert ["tsfm", "greet", "greet", "someone"] in lines
    assert ["tsfm", "shout", "added", "by yells"] in lines
    assert said.stderr.splitlines() == [
        "warning: data.list of tsfm.commands is in tsfm-suite and in yells: that of tsfm-suite is used",
        "warning: image.predict of tsfm.commands is in tsfm-suite and in yells: that of tsfm-suite is used",
    ]
    assert "--times TIMES" in tsfm(packages, "greet", "--help").stdout
    assert tsfm(packages, "image", "greet", "Ada", "--times", "2").stdout == "hello Ada hello Ada \n"
    broken = tsfm(packages, "shout")
    assert (broken.returncode, broken.stdout) == (2, "")
    assert broken.stderr.splitlines()[-1].startswith(
        "tsfm: error: expected the command tsfm shout in missing_package:shout (entry point of tsfm.commands), found"
    )
    missing = tsfm(packages, "draw").stderr.splitlines()[-1]
    assert missing == (
        "tsfm: error: expected the packages of the command tsfm draw, found no missing_art: pip install 'toys[art]'"
    )


@pytest.mark.slow
def test_when_another_package_adds_a_backbone_then_timm_makes_it_like_ours(packages: Path) -> None:
    pytest.importorskip("timm")
    done = python(packages, "-c", USE_BACKBONE)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "torch.Size([1, 3]) ('a', 'b', 'c')\n"
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("warning: "))  # timm warns, too
    assert line.startswith("warning: expected the backbones broken in missing_package (entry point of tsfm.backbones)")
