"""A wheel in its own environment, used within another project's repository, does all that README.md promises."""

import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import yaml
from command import waves
from readme import README
from wheel import ROOT, build_wheel

import tsfm
from tsfm.configs import config_names
from tsfm.scaling.runs.cell import commit

pytestmark = pytest.mark.slow
GRID = {
    "arch": ["encoder"],
    "size": ["1K"],
    "lr": [1e-3],
    "steps": [2],
    "configs": ["pretrain/base", "pretrain/debug"],
    "fit": {"data": {"init_args": {"context": 64, "prefetch": 0, "val_windows": 8}}, "trainer": {"accelerator": "cpu"}},
}


@dataclass(frozen=True)
class Installed:
    """An environment that the wheel is installed in, and the folder of another project's repository.

    Attributes:
        bin: where the commands are.
        package: where the packages are.
        project: the other project's folder.
    """

    bin: Path
    package: Path
    project: Path

    def run(self, *words: str, git: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the other project, with nothing of the checkout at hand."""
        kept = {key: os.environ[key] for key in ("TSFM_CACHE", "TSFM_DATA", "HF_HUB_OFFLINE") if key in os.environ}
        path = os.pathsep.join([str(self.bin), *([os.environ["PATH"]] if git else [])])
        environment = {**kept, "PATH": path, "HOME": str(self.project.parent), "OMP_NUM_THREADS": "1"}
        command = [str(self.bin / words[0]), *words[1:]]
        done = subprocess.run(command, cwd=self.project, env=environment, text=True, capture_output=True)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done

    def files(self) -> dict[str, tuple[int, int]]:
        """Size and time of every file of the packages."""
        stats = {path: path.stat() for path in self.package.rglob("*") if "__pycache__" not in path.parts}
        return {str(path): (stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel, installed beside the dependencies of this environment."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "env")], check=True)
    python = folder / "env/bin/python"
    purelib = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        text=True,
        capture_output=True,
        check=True,
    )
    package = Path(purelib.stdout.strip())
    # A folder that a .pth file names is searched, but its own .pth files, such as that of the checkout, are not read.
    (package / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--disable-pip-version-check", str(build_wheel(folder))], check=True)
    project = folder / "another project"
    project.mkdir()
    author = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    for words in (["init", "--quiet"], [*author, "commit", "--quiet", "--allow-empty", "--message", "theirs"]):
        subprocess.run(["git", *words], cwd=project, check=True)
    (project / "pyproject.toml").touch()
    waves().to_csv(project / "table.csv", index=False)
    return Installed(python.parent, package, project)


def test_when_the_wheel_is_installed_then_its_packages_are_its_own(installed: Installed) -> None:
    names = "tsfm, tsfm_data, tsfm_vision"
    code = f"import sys, {names}; print(*[module.__file__ for module in ({names})], *sys.path, sep='\\n')"
    files_and_folders = installed.run("python", "-c", code).stdout.splitlines()
    assert sum(line.startswith(f"{installed.package}/tsfm") for line in files_and_folders) == 3
    assert not {str(ROOT), str(ROOT / "data"), str(ROOT / "vision")} & {*files_and_folders}


def test_when_the_wheel_is_used_then_every_command_of_the_readme_works_and_its_folder_stays_as_it_was(
    installed: Installed,
) -> None:
    before = installed.files()
    for block in README:
        if block.reason is None and block.kind == "python":
            installed.run("python", "-c", block.text)
        for words in block.commands() if block.reason is None and block.kind != "python" else ():
            installed.run(*words)
    assert "tsfm forecast" in installed.run("tsfm", "--help").stdout
    assert [line.split()[0] for line in installed.run("tsfm", "configs", "list").stdout.splitlines()] == config_names()
    installed.run("tsfm", "forecast", "table.csv", "--horizon", "6", "--output", "forecast.csv", "--overwrite")
    assert len(pd.read_csv(installed.project / "forecast.csv")) == 6 * 3
    sizes = [f"--model.forecaster.config.{name}=16" for name in ("d_model", "d_ff")]
    words = ["--config", "itransformer/base", *sizes, "--data.source=table.csv", "--data.split=auto"]
    words += ["--data.context=24", "--data.horizon=6", "--trainer.limit_train_batches=3", "--trainer.max_epochs=1"]
    assert "model folder: run/model" in installed.run("tsfm", "fit", *words, "--trainer.default_root_dir=run").stdout
    assert installed.files() == before


def test_when_a_grid_is_swept_then_the_ledger_holds_our_version_and_no_commit_of_theirs(installed: Installed) -> None:
    before = installed.files()
    (installed.project / "grid.yaml").write_text(yaml.safe_dump(GRID))
    installed.run("tsfm", "scaling", "sweep", "grid.yaml", "--output", "sweep")
    assert pd.read_csv(installed.project / "sweep/ledger.csv")["commit"].astype(str).tolist() == [tsfm.__version__]
    assert installed.files() == before


def test_when_there_is_no_git_then_nothing_asks_for_it(installed: Installed) -> None:
    code = "from tsfm.scaling.runs.cell import commit; print(commit())"
    assert installed.run("python", "-c", code, git=False).stdout == f"{tsfm.__version__}\n"
    installed.run("tsfm", "forecast", "table.csv", "--horizon", "6", git=False)


def test_when_the_checkout_runs_then_its_commit_is_known() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        assert commit() == tsfm.__version__
        return
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True, capture_output=True, check=True)
    assert commit() == head.stdout.strip()


def test_when_a_suite_is_scored_then_baselines_are_those_that_were_kept(
    installed: Installed, data_folder: Path
) -> None:
    words = ["--model", "seasonal-naive", "--suite", "bench", "--sets", "us_births", "--profiles", "gift"]
    said = installed.run("tsfm", "evaluate", *words).stdout
    assert [line.split("|")[3].strip() for line in said.splitlines() if "auto-" in line] == ["0.857", "0.856"]
