"""The wheel of the checkout."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def build_wheel(folder: Path) -> Path:
    """Build the wheel from a copy of the checkout, without network, into a folder."""
    source = folder / "source"
    shutil.copytree(
        ROOT, source,
        ignore=lambda folder, names: [
            name for name in names
            if name.startswith(".") or name == "__pycache__" or name.endswith(".egg-info")
            or (Path(folder) == ROOT and name in ("build", "runs", "report", "dist"))
        ],
    )  # fmt: skip
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
         "--disable-pip-version-check", "--wheel-dir", str(folder), str(source)],
        check=True, env={**os.environ, "PIP_NO_INPUT": "1"},
    )  # fmt: skip
    (wheel,) = folder.glob("tsfm_suite-*.whl")
    return wheel
