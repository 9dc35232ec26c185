"""timm's own tests of its models, from its source package of the installed version, pass for ours."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

timm = pytest.importorskip("timm")

ROOT = Path(__file__).resolve().parent.parent
# PyTorch has deprecated TorchScript, which our models do not serve; tests must not download published weights.
LEFT_OUT = "not torchscript and not pretrained"
# Copies each model twice for each of its levels, so timm leaves it out of its own runs: here for one of each kind.
LONG = "prune_intermediate_layers_contract"
SMALLEST = (
    "tsfm_poolformer_s12 metaformer_ppff_s12_224 metaformer_ppaa_s12_224 tsfm_tnt_s_patch16_224 "
    "tsfm_tnt_s_legacy_patch16_224 ptnt_ti_patch16_192 illama_tiny biformer_tiny biformer_stl biformer_stl_nchw"
)
FAMILIES = ["tsfm_poolformer_* metaformer_*", "tnt_ti_* tsfm_tnt_*", "ptnt_*", "illama_*", "biformer_*"]
CASES = [*((names, f"{LEFT_OUT} and not {LONG}") for names in FAMILIES), (SMALLEST, LONG)]


@pytest.fixture(scope="session")
def timm_tests(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """timm's ``tests/test_models.py``, fetched once by pip; wheels do not have it."""
    assert pytestconfig.cache is not None
    inside = f"timm-{timm.__version__}/tests/test_models.py"
    kept = Path(pytestconfig.cache.mkdir("timm"))
    if not (kept / inside).is_file():
        new = tmp_path_factory.mktemp("timm")
        words = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "timm"]
        words += ["--dest", str(new), f"timm=={timm.__version__}"]
        try:
            subprocess.run(words, capture_output=True, timeout=120, check=True)
        except (subprocess.SubprocessError, OSError):
            pytest.skip(f"pip cannot fetch the source package of timm {timm.__version__}")
        with tarfile.open(next(new.glob("*.tar.gz"))) as archive:
            archive.extract(inside, kept, filter="data")
    return kept / inside


@pytest.mark.slow
@pytest.mark.parametrize(("models", "chosen"), CASES)
def test_when_timm_tests_its_models_then_ours_pass_too(models: str, chosen: str, timm_tests: Path) -> None:
    path = os.pathsep.join(str(ROOT / folder) for folder in (".", "data", "vision", "tests"))
    words = [sys.executable, "-m", "pytest", str(timm_tests), "-p", "timm_own", "-p", "no:cacheprovider", "-q"]
    words += ["-p", "no:warnings", "-c", os.devnull, "--tb=short", "-k", chosen]
    environment = {**os.environ, "PYTHONPATH": path, "TIMM_MODELS": models}
    done = subprocess.run(words, cwd=timm_tests.parent, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
