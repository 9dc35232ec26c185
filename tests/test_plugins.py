"""Another package adds a forecaster by an entry point; one that cannot be imported is named and breaks nothing else."""

import os
import subprocess
import sys
from pathlib import Path

MODEL = '''
"""A forecaster of another package."""

from tsfm.models import ITransformer


class Toy(ITransformer):
    model_type = "toy"
'''
USE = """
import warnings
from tsfm import load
from tsfm.models import MODELS, model_class, model_classes
from tsfm.weights import save
from tsfm_data.errors import InputError

kind = model_class("toy")
save(kind(24, 4, type(kind(24, 4).config)(d_model=8, d_ff=8, heads=2)), "saved")
print(type(load("saved").predictor).__name__)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    print(sorted(model_classes()) == sorted(set(MODELS) - {"broken", "odd"}))
print(len([w for w in said if "entry point of tsfm.models" in str(w.message)]))
try:
    model_class("broken")
except InputError as error:
    print(error)
"""


def test_when_another_package_adds_a_forecaster_then_it_is_a_model_like_ours(tmp_path: Path) -> None:
    (tmp_path / "toys.py").write_text(MODEL)
    info = tmp_path / "toys-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[tsfm.models]\ntoy = toys:Toy\nbroken = missing_package:Model\nodd = toys\n"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", USE],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    kind, listed, warned, error = done.stdout.splitlines()
    assert (kind, listed, warned) == ("Toy", "True", "2")
    assert error.startswith(
        "expected the model type broken in missing_package:Model (entry point of tsfm.models), found"
    )
    assert "No module named 'missing_package'" in error
