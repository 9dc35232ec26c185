"""Whatever happens to a command, nothing is lost, nothing is left behind, and its status tells the truth."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trials
import yaml
from command import listing, prepare, run
from tiny_series import tiny

from tsfm.commands.cli import end_with
from tsfm.weights import save
from tsfm_data.io import atomic_folder, lock_folder

FORECAST = ("forecast", "table.csv", "--horizon", "3", "--model", "naive")
TUNE = ("finetune", "table.csv", "--horizon", "4", "--model", "start")
# Commands that write a folder, and what locks it.
LOCKED = {
    "fit": ("fit", "--config", "config.yaml", "--trainer.default_root_dir"),
    "data build": ("data", "build", "corpus.yaml", "--output"),
    "scaling sweep": ("scaling", "sweep", "grid.yaml", "--output"),
    "demo": ("demo", "--max-epochs", "1", "--output"),
}
REPLACED = {
    "finetune": (*TUNE, "--output"),
    "backtest": ("backtest", "table.csv", "--horizon", "4", "--models", "naive", "seasonal-naive", "--output"),
    "weights convert": ("weights", "convert", "checkpoint.pth"),
    "weights mirror": ("weights", "mirror", "tsfm-decoder-small"),
    "image finetune": ("image", "finetune", "digits", "--output"),
}


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a table, a config, a model, a corpus YAML and a grid."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    prepare(folder)
    save(tiny(), "start")
    Path("checkpoint.pth").touch()
    Path("corpus.yaml").write_text(yaml.safe_dump({"sources": [{"path": "table.csv"}]}))
    data = {"class_path": "Data", "init_args": {"context": 64, "horizon": 32, "batch_size": 4}}
    grid = {"arch": ["encoder"], "size": ["1K"], "lr": [1e-3], "steps": [10], "fit": {"data": data}}
    Path("grid.yaml").write_text(yaml.safe_dump({**grid, "command": [sys.executable, "-c", "pass"]}))
    return folder


def until(found: Callable[[], object]) -> None:
    """Wait until something is true."""
    end = time.monotonic() + 60
    while not found():
        assert time.monotonic() < end
        time.sleep(0.01)


def work(folder: Path) -> int:
    with atomic_folder(folder) as temporary:
        (temporary / "half").write_text("half")
        time.sleep(600)
    return 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_when_a_command_is_ended_by_a_signal_then_one_line_says_so_and_nothing_is_left(
    workplace: Path, number: int
) -> None:
    before = listing(workplace)
    trial = trials.start((), workplace, entry=lambda words: end_with(lambda: work(Path("new/out"))))
    until(lambda: list(workplace.glob("new/.out*/half")))
    trial.kill(number)
    ended = trial.wait(10)
    assert (ended.status, ended.err) == (2, "tsfm: error: interrupted: no file is left half-written\n")
    assert listing(workplace) == before


def test_when_training_is_ended_by_a_signal_then_one_line_says_how_it_goes_on(workplace: Path) -> None:
    import tsfm.commands.train  # noqa: F401 - here, and not in the process that is ended

    text = Path("config.yaml").read_text().replace("patience: 3", "patience: 1000")
    Path("config.yaml").write_text(text)
    trial = trials.start((*LOCKED["fit"], "run", "--trainer.max_epochs", "1000"), workplace)
    until(lambda: Path("run/checkpoints/last.ckpt").is_file())
    trial.kill(signal.SIGTERM)
    ended = trial.wait(20)
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert "is complete; to resume, repeat the command with --ckpt_path run/checkpoints/" in ended.err
    assert not list(Path("run").rglob(".*"))


def closed() -> None:
    os.close(1)
    sys.stdout = None  # type: ignore[assignment] - as Python starts with >&-


def unread() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)


@pytest.mark.parametrize("words", [FORECAST, ("weights", "list"), ("configs", "list"), ("--help",)])
@pytest.mark.parametrize(
    ("fault", "status", "message"),
    [
        ("closed", 2, "expected a standard output, found it closed"),
        ("unread", 141, ""),
        ("full", 2, "No space left on device"),
    ],
)
def test_when_the_standard_output_loses_a_result_then_the_status_says_so(
    workplace: Path, words: tuple[str, ...], fault: str, status: int, message: str
) -> None:
    before = {"closed": closed, "unread": unread}.get(fault, lambda: None)
    trial = trials.start(words, workplace, before, Path("/dev/full") if fault == "full" else None)
    ended = trial.wait(60)
    assert ended.status == status, ended.err
    assert message in ended.err
    assert ended.err.count("\n") == (1 if message else 0)


def test_when_input_and_error_are_closed_then_their_numbers_are_not_given_to_files(workplace: Path) -> None:
    def before() -> None:
        os.close(0)
        os.close(2)
        sys.stdin = sys.stderr = None  # type: ignore[assignment]

    ended = trials.start((*FORECAST, "--output", "out.csv"), workplace, before).wait(60)
    assert ended.status == 0
    assert ended.out.startswith("out.csv: 3 series")
    assert len(Path("out.csv").read_text().splitlines()) == 10


@pytest.mark.parametrize("name", [*LOCKED, *REPLACED])
def test_when_another_run_writes_the_folder_then_the_second_is_refused_before_the_work(
    workplace: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    if name == "image finetune" and not has_digits():
        pytest.skip("no image set")
    place = Path("out/tsfm-decoder-small" if name == "weights mirror" else "out")
    if name == "demo":
        Path("out").mkdir()
        Path("out/fit.yaml").touch()  # the first thing that it writes

    def hold(words: object) -> None:
        with (lock_folder if name in LOCKED else atomic_folder)(place):
            Path("held").touch()
            time.sleep(600)

    trial = trials.start((), workplace, entry=hold)
    try:
        until(Path("held").is_file)
        before = listing(workplace)
        result = run(capsys, *{**LOCKED, **REPLACED}[name], "out")
        assert (result.status, result.err.count("\n")) == (2, 1), result.err
        assert "no other run" in result.err
        assert "wait until it has ended" in result.err
        assert listing(workplace) == before
    finally:
        trial.kill(signal.SIGKILL)
        trial.wait()


def has_digits() -> bool:
    """Make a small image set, if scikit-learn is installed."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        return False
    from PIL import Image

    pictures, labels = load_digits(return_X_y=True)
    for index, (picture, label) in enumerate(zip(pictures[:60], labels[:60], strict=True)):
        Path(f"digits/{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray((picture.reshape(8, 8) * 15).astype("uint8")).save(f"digits/{label}/{index}.png")
    return True


@pytest.mark.slow
def test_when_a_killed_command_is_run_again_then_nothing_of_it_is_left(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*REPLACED["backtest"], "out")
    trial = trials.start(words, workplace)
    until(lambda: list(workplace.glob(".out*")))
    trial.kill(signal.SIGKILL)
    assert trial.wait().status == -signal.SIGKILL
    assert list(workplace.glob(".out*"))
    assert run(capsys, *words).status == 0
    assert not list(workplace.rglob(".*"))
    assert json.loads(Path("out/backtest.json").read_text())
