# ruff: noqa: E501  the tables of cases read best with one case a line
"""A user's mistake, given to the command itself: one line on standard error, status 2, and nothing half-written."""

import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from command import CONFIG, done, listing, prepare, run, waves
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parent.parent
FORECAST = ("forecast", "table.csv", "--horizon", "6", "--output", "out.csv")
EVALUATE = ("evaluate", "--model", "naive", "--data", "table.csv", "--horizon", "6", "--json", "out.json")
FIT = ("fit", "--config", "config.yaml")


def assert_one_line(status: int, err: str, parts: tuple[str, ...]) -> None:
    assert status == 2
    assert err.startswith("tsfm: error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    assert len(err) < 500, err
    for part in parts:
        assert part in err


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with table, config and a finished run, made once."""
    folder = tmp_path_factory.mktemp("trained")
    before = Path.cwd()
    os.chdir(folder)
    try:
        prepare(folder)
        from tsfm.commands.cli import main

        with pytest.raises(SystemExit) as end:
            main(FIT)
        assert not end.value.code
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def workplace(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder to spoil."""
    folder = tmp_path / "work"
    shutil.copytree(trained, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def refused(workplace: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Runs a command that must be refused with a line that holds all the parts, leaving every file as it was."""

    def check(words: tuple[str, ...], *parts: str) -> None:
        before = listing(workplace)
        result = run(capsys, *words)
        assert_one_line(result.status, result.err, parts)
        assert listing(workplace) == before

    return check


def table(edit: Callable[[pd.DataFrame], pd.DataFrame | None]) -> Callable[[Path], None]:
    """Writes the usual table after an edit."""

    def write(path: Path) -> None:
        frame = waves().astype(object)
        changed = edit(frame)
        (frame if changed is None else changed).to_csv(path, index=False)

    return write


def cell(row: int, column: str, value: object) -> Callable[[pd.DataFrame], None]:
    def edit(frame: pd.DataFrame) -> None:
        frame.loc[row, column] = value

    return edit


def long(second: pd.DatetimeIndex) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Two series in a long table, the second with these timestamps."""

    def edit(frame: pd.DataFrame) -> pd.DataFrame:
        dates = [*pd.date_range("2024-01-01", periods=len(second), freq="h"), *second]
        ids = ["a"] * len(second) + ["b"] * len(second)
        return pd.DataFrame({"item_id": ids, "timestamp": dates, "target": np.arange(len(dates)) * 1.0})

    return edit


def folder_in_place(path: Path) -> None:
    path.unlink()
    path.mkdir()


# What is wrong with table.csv -> how it is made, and what the line must hold.
TABLES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "missing": (lambda p: p.rename(p.with_name("tabel.csv")), ("table.csv: no such file", "tabel.csv")),
    "empty": (lambda p: p.write_text(""), ("table.csv", "empty")),
    "blank": (lambda p: p.write_text("\n\n"), ("table.csv", "blank lines")),
    "header alone": (lambda p: p.write_text("date,a\n"), ("expected rows of values", "only a header")),
    "folder": (folder_in_place, ("table.csv: expected a file, found a folder",)),
    "binary": (lambda p: p.write_bytes(bytes(range(256)) * 40), ("table.csv", "expected")),
    "half UTF-16": (lambda p: p.write_bytes(b"\xff\xfed\x00a"), ("table.csv", "UTF-16")),
    "wrong delimiter": (lambda p: p.write_text("date:a\n2024-01-01:1\n"), ("row 1", "separated by comma")),
    "torn row": (lambda p: p.write_text("date,a\n2024-01-01,1\n2024-01-02,2,3\n"), ("row 3", "expected 2 fields", "found 3")),
    "no header": (lambda p: p.write_text("2024-01-01,1\n2024-01-02,2\n"), ("row 1", "header", "date,target")),
    "no time column": (table(lambda f: f.drop(columns="date")), ("time column", "v0", "time_column")),
    "bad timestamp": (table(cell(7, "date", "yesterday")), ("'date'", "row 9", "yesterday")),
    "duplicate timestamp": (table(cell(7, "date", "2024-01-01 06:00:00")), ("'date'", "row 9", "2024-01-01 06:00")),
    "mixed frequencies": (
        table(lambda f: f.drop(index=[k for k in range(100, 220) if k % 7])),
        ("table.csv", "'date'"),
    ),
    "text in a column": (table(cell(3, "v1", "n.a")), ("'v1'", "row 5", "'n.a'")),
    "decimal comma": (table(cell(3, "v1", "3,5")), ("'v1'", "row 5", "decimals with a point")),
    "column without values": (table(lambda f: f.assign(v1=None)), ("'v1'", "no value in any row", "leave the column out")),
    "infinite value": (table(cell(3, "v1", "inf")), ("'v1'", "row 5", "finite")),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLES)
def test_when_a_table_is_bad_then_every_command_that_reads_it_says_so_in_one_line(
    refused: Callable[..., None], workplace: Path, case: str
) -> None:
    spoil, parts = TABLES[case]
    spoil(workplace / "table.csv")
    for words in (FORECAST, EVALUATE, FIT, ("data", "inspect", "table.csv")):
        refused(words, *parts)


def test_when_timestamps_are_unsorted_then_they_are_sorted_or_refused_but_never_misread(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done(capsys, *FORECAST)
    sorted_rows = pd.read_csv("out.csv")
    waves().sample(frac=1.0, random_state=1).to_csv("table.csv", index=False)
    before = listing(workplace)
    result = run(capsys, *FORECAST, "--overwrite")
    if result.status:
        assert_one_line(result.status, result.err, ("'date'", "row"))
        assert listing(workplace) == before
    else:
        pd.testing.assert_frame_equal(pd.read_csv("out.csv"), sorted_rows)


def test_when_series_of_a_table_have_unlike_frequencies_then_training_is_refused(
    refused: Callable[..., None], workplace: Path
) -> None:
    table(long(pd.date_range("2024-01-01", periods=110, freq="D")))(workplace / "table.csv")
    refused(FIT, "frequenc", "h")


# A command line -> what the line must hold.
COMMANDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "no such command": (("forcast", "table.csv"), ("unknown command 'forcast'", "forecast")),
    "no such command in a group": (("data", "lst"), ("unknown command of tsfm data 'lst'", "list")),
    "no input": (("forecast",), ("input", "--horizon", "tsfm forecast --help")),
    "no horizon": (("forecast", "table.csv"), ("required", "--horizon")),
    "no value": (("forecast", "table.csv", "--horizon"), ("--horizon", "expected one argument")),
    "one word too many": ((*FORECAST, "more"), ("more",)),
    "misspelt option": (("forecast", "table.csv", "--horizn", "6"), ("'--horizn'", "did you mean --horizon")),
    "horizon 0": (("forecast", "table.csv", "--horizon", "0"), ("at least 1 step", "found 0")),
    "negative horizon": (("forecast", "table.csv", "--horizon", "-3"), ("at least 1 step", "found -3")),
    "horizon a word": (("forecast", "table.csv", "--horizon", "day"), ("--horizon", "int", "'day'")),
    "level above 1": ((*FORECAST, "--levels", "0.5", "1.5"), ("levels between 0 and 1", "1.5")),
    "level 0": ((*FORECAST, "--levels", "0"), ("levels between 0 and 1",)),
    "level twice": ((*FORECAST, "--levels", "0.5,0.5"), ("distinct",)),
    "level a word": ((*FORECAST, "--levels", "high"), ("--levels", "high")),
    "unknown model": ((*FORECAST, "--model", "seasonal-naiv"), ("unknown model", "seasonal-naive")),
    "unknown model folder": ((*FORECAST, "--model", "runs/nothing"), ("expected a model folder", "runs/nothing")),
    "folder without a model": ((*FORECAST, "--model", "run/logs"), ("config.json", "run/logs")),
    "unknown data set": (("forecast", "ETTh", "--horizon", "6"), ("unknown data set 'ETTh'", "ETTh1")),
    "unknown column": ((*FORECAST, "--target", "v7"), ("unknown column 'v7'", "v0")),
    "unknown time column": ((*FORECAST, "--time-column", "dat"), ("unknown column 'dat'", "date")),
    "unknown frequency": ((*FORECAST, "--freq", "fortnight"), ("fortnight",)),
    "no batch": ((*FORECAST, "--batch-size", "0"), ("batch", "0")),
    "unknown output suffix": (("forecast", "table.csv", "--horizon", "6", "--output", "out.xlsx"), (".parquet", "out.xlsx")),
    "unknown plot suffix": ((*FORECAST, "--plot", "plot.gif"), (".png", "plot.gif")),
    "output in a file": (("forecast", "table.csv", "--horizon", "6", "--output", "table.csv/out.csv"), ("expected a folder for", "table.csv", "name another output")),
    "output is a folder": (("forecast", "table.csv", "--horizon", "6", "--output", "folder.csv"), ("folder.csv",)),
    "half a step": ((*FORECAST, "--horizon", "1.5"), ("--horizon", "'1.5'")),
    "horizon of a billion": ((*FORECAST, "--horizon", "1000000000000"), ("at most 1,000,000 steps", "--horizon 24")),
    "horizon past the calendar": ((*FORECAST, "--freq", "h", "--resample", "MS", "--horizon", "9000"), ("year 2262", "smaller horizon")),
    "unknown profile": ((*EVALUATE, "--profile", "gif"), ("unknown profile 'gif'", "gift")),
    "evaluation horizon 0": (("evaluate", "--model", "naive", "--data", "table.csv", "--horizon", "0"), ("at least 1 step",)),
    "unknown suffix of scores": ((*EVALUATE[:-1], "out.txt"), (".json", "out.txt")),
    "unknown suffix of image scores": (("image", "evaluate", "nothing", "--json", "out.txt"), (".json", "out.txt")),
    "unknown suffix of a calibration": (("image", "evaluate", "nothing", "--plot", "out.gif"), (".png", "out.gif")),
    "unknown suffix of probabilities": (("image", "predict", "nothing", "--output", "out.xlsx"), (".csv", "out.xlsx")),
    "unknown suffix of maps": (("image", "explain", "nothing", "--output", "out.gif"), (".png", "out.gif")),
    "unknown suffix of class scores": (("classify", "evaluate", "nothing", "--model", "nothing", "--json", "out.txt"), (".json", "out.txt")),
    "unknown suffix of a gallery": (("data", "gallery", "out.gif", "--corpus", "nothing"), (".png", "out.gif")),
    "windows of a suite": (("evaluate", "--suite", "bench", "--windows", "3"), ("--windows only with --data",)),
    "more windows than rows": ((*EVALUATE, "--windows", "90"), ("541 rows", "fewer windows")),
    "too short to evaluate": (("evaluate", "--model", "naive", "--data", "table.csv", "--horizon", "300"), ("table", "300")),
    "role of data sets": (("data", "list", "--role", "tests"), ("unknown role 'tests'",)),
    "data set to pull": (("data", "pull", "ETTh3"), ("unknown data set 'ETTh3'", "ETTh1")),
    # training
    "no config": (("fit",), ("expected a config", "--config FILE")),
    "config missing": (("fit", "--config", "confg.yaml"), ("found nothing at confg.yaml", "config.yaml")),
    "config a folder": (("fit", "--config", "run"), ("found a folder at run",)),
    "unknown option": ((*FIT, "--nonsense", "1"), ("'nonsense'", "trainer")),
    "misspelt option of the data": ((*FIT, "--data.horizn", "3"), ("'horizn'", "horizon", "on the command line")),
    "misspelt option of the model": ((*FIT, "--model.forecaster.config.d_modle", "8"), ("'d_modle'", "d_model")),
    "misspelt option of the trainer": ((*FIT, "--trainer.max_epcohs", "3"), ("'max_epcohs'", "max_epochs")),
    "misspelt class": ((*FIT, "--model", "ForcastTask"), ("'ForcastTask'", "ForecastTask")),
    "misspelt forecaster": ((*FIT, "--model.forecaster", "ITransfomer"), ("'ITransfomer'", "ITransformer")),
    "epochs a word": ((*FIT, "--trainer.max_epochs", "many"), ("expected int", "trainer.max_epochs", "'many'")),
    "horizon 0 in training": ((*FIT, "--data.horizon", "0"), ("horizon of at least 1 step", "found 0")),
    "batch 0 in training": ((*FIT, "--data.batch_size", "0"), ("batch_size", "at least 1", "found 0")),
    "seed -1": ((*FIT, "--seed_everything", "-1"), ("seed_everything from 0 to 4,294,967,295", "found -1")),
    "seed of 71 bits": ((*FIT, "--data.seed", str(2**70)), ("seed from 0 to 4,294,967,295",)),
    "seed a word": ((*FIT, "--seed_everything", "abc"), ("expected bool or int at key seed_everything", "'abc'")),
    "seed of a fine-tuning": (("finetune", "table.csv", "--horizon", "3", "--output", "o", "--seed", "-1"), ("--seed from 0",)),
    "context too long": ((*FIT, "--data.context", "230"), ("220 rows", "context 230", "smaller context")),
    "no such data set": ((*FIT, "--data.source", "ETTh"), ("unknown data set 'ETTh'", "ETTh1")),
    "no such marks": ((*FIT, "--data.marks", "x"), ("unknown frequency 'x'",)),
    "no such split": ((*FIT, "--data.split", "lsff"), ("unknown split 'lsff'", "lsf")),
    "no such variate": ((*FIT, "--data.train_variates", "[v9]"), ("unknown variate 'v9'", "v0")),
    "no such accelerator": ((*FIT, "--trainer.accelerator", "gpux"), ("gpux", "cpu")),
    "run folder in a file": ((*FIT, "--trainer.default_root_dir", "table.csv/run"), ("table.csv/run", "check the path")),
    "logger without a folder": ((*FIT, "--trainer.logger", "TensorBoardLogger"), ("save_dir", "--trainer.logger.save_dir")),
    "no such checkpoint": ((*FIT, "--ckpt_path", "run/checkpoints/bst.ckpt"), ("bst.ckpt", "best.ckpt")),
    "not a checkpoint": ((*FIT, "--ckpt_path", "table.csv"), ("checkpoint", "table.csv")),
    "checkpoint of another size": (
        (*FIT, "--ckpt_path", "run/checkpoints/best.ckpt", "--model.forecaster.config.d_model", "32"),
        ("(32,)", "found (16,)", "best.ckpt", "use the config"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", COMMANDS)
def test_when_a_command_line_is_wrong_then_one_line_says_so(
    refused: Callable[..., None], workplace: Path, case: str
) -> None:
    (workplace / "folder.csv").mkdir()
    words, parts = COMMANDS[case]
    refused(words, *parts)


# A mistake in the config: text to replace, replacement, and what the line must hold.
CONFIGS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "misspelt size": ("d_model: 16", "d_modle: 16", ("'d_modle'", "did you mean d_model", "config.yaml, line 8")),
    "misspelt option of the data": ("batch_size", "bach_size", ("'bach_size'", "batch_size", "config.yaml, line 12")),
    "misspelt option of the optimiser": ("lr: 1.0e-3", "rl: 1.0e-3", ("'rl'", "OptimConfig", "line 9")),
    "misspelt option of a callback": ("patience: 3", "patiense: 3", ("'patiense'", "patience")),
    "misspelt section": ("trainer:", "trianer:", ("'trianer'", "did you mean trainer")),
    "misspelt short class": ("class_path: ForecastTask", "class_path: ForcastTask", ("'ForcastTask'", "ForecastTask", "line 3")),
    "misspelt forecaster": ("class_path: ITransformer", "class_path: ZeroShotDecodr", ("did you mean ZeroShotDecoder, ZeroShotEncoder, Decoder?", "line 6")),
    "misspelt forecaster's path": ("class_path: ITransformer", "class_path: tsfm.models.ZeroShotDecodr", ("did you mean ZeroShotDecoder",)),
    "misspelt class path": ("class_path: ForecastTask", "class_path: tsfm.training.task.ForcastTask", ("'ForcastTask'", "did you mean ForecastTask")),
    "misspelt module": ("class_path: ITransformer", "class_path: tsfm.models.itransfomer.ITransformer", ("'itransfomer'", "itransformer")),
    "misspelt callback": ("class_path: EarlyStopping", "class_path: EarlyStoping", ("'EarlyStoping'", "EarlyStopping")),
    "class of another kind": ("class_path: ForecastTask", "class_path: collections.OrderedDict", ("LightningModule", "collections.OrderedDict")),
    "word for a number": ("d_model: 16", "d_model: wide", ("expected int", "model.forecaster.config.d_model", "'wide'", "line 8")),
    "fraction for a whole number": ("batch_size: 32", "batch_size: 3.5", ("expected int", "data.batch_size", "3.5")),
    "unknown optimiser": ("name: adam", "name: adamx", ("one of adam, adamw", "'adamx'")),
    "negative rate": ("lr: 1.0e-3", "lr: -1", ("learning rate above 0", "-1")),
    "dropout above 1": ("layers: 1", "layers: 1, dropout: 2.0", ("dropout in [0, 1)", "2.0")),
    "no layer": ("layers: 1", "layers: 0", ("layers of at least 1", "found 0")),
    "heads that do not divide": ("heads: 2", "heads: 3", ("heads that divide", "16", "3")),
    "levels above 1": ("layers: 1", "layers: 1, levels: [0.5, 5]", ("levels between 0 and 1",)),
    "unknown metric": ("monitor: val_loss, patience", "monitor: val_los, patience", ("'val_los'", "did you mean val_loss")),
    "not YAML": ("data:\n", "data: [\n", ("expected YAML in config.yaml, line 12",)),
    "not text": ("seed_everything", "\0seed", ("expected YAML in config.yaml",)),
    "not a mapping": (CONFIG, "- a\n- b\n", ("config.yaml", "found a list")),
    "empty": (CONFIG, "", ("config.yaml", "found nothing")),
    "missing table": ("table.csv", "tabel.csv", ("tabel.csv: no such file", "table.csv")),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIGS)
def test_when_a_config_is_wrong_then_one_line_names_the_key_and_the_place(
    refused: Callable[..., None], workplace: Path, case: str
) -> None:
    old, new, parts = CONFIGS[case]
    path = workplace / "config.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    shutil.rmtree(workplace / "run")
    refused(FIT, *parts)


class Trap:
    """Unpickled, it leaves a mark."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return (Path.touch, (Path("executed"),))  # type: ignore[return-value]


def change_config(**changes: object) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return edit


def other_weights(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["head.weight"] = torch.zeros(7, 16)
    save_file(state, folder / "model.safetensors")


def rewrite(name: str, edit: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(edit((folder / name).read_bytes()))


# What is wrong with the model folder -> how it is made, and what the line must hold.
FOLDERS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "truncated weights": (rewrite("model.safetensors", lambda b: b[: len(b) // 2]), ("truncated", "model.safetensors")),
    "empty weights": (rewrite("model.safetensors", lambda b: b""), ("expected weights", "found something else")),
    "weights of junk": (rewrite("model.safetensors", lambda b: b"\xff" * 400), ("expected weights", "found something else")),
    "a pickle for weights": (rewrite("model.safetensors", lambda b: pickle.dumps(Trap())), ("found a pickle", "not read")),
    "a torch file for weights": (lambda f: torch.save(Trap(), f / "model.safetensors"), ("found a PyTorch file", "not read")),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), ("expected model.safetensors", "found none")),
    "weights of another model": (other_weights, ("head.weight", "(6, 16)", "(7, 16)", "different models")),
    "no config": (lambda f: (f / "config.json").unlink(), ("expected config.json",)),
    "torn config": (rewrite("config.json", lambda b: b[:40]), ("expected JSON", "config.json")),
    "config of a list": (rewrite("config.json", lambda b: b"[1]"), ("with keys and values", "found [1]")),
    "config of a newer format": (change_config(format_version=99), ("format_version", "found 99", "upgrade")),
    "config of an unknown model": (change_config(model_type="itransfomer"), ("'itransfomer'", "itransformer")),
    "config without sizes": (change_config(config={}), ("model.safetensors",)),
    "config with a strange size": (change_config(config={"d_modle": 16}), ("'d_modle'", "d_model", "config.json")),
    "config with a word for a size": (change_config(config={"d_model": "wide"}), ("expected a whole number at d_model", "'wide'")),
    "config with a word for the context": (change_config(context="long"), ("context", "config.json")),
    "config with context 0": (change_config(context=0), ("context", "config.json")),
    "config of a list for sizes": (change_config(config=[1]), ("config.json",)),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLDERS)
def test_when_a_model_folder_is_spoilt_then_one_line_says_so_and_nothing_in_it_is_executed(
    refused: Callable[..., None], workplace: Path, case: str
) -> None:
    spoil, parts = FOLDERS[case]
    spoil(workplace / "run" / "model")
    refused((*FORECAST, "--model", "run"), *parts)
    refused(("evaluate", "--model", "run", "--data", "table.csv", "--horizon", "6", "--json", "o.json"), *parts)


@pytest.mark.parametrize("content", ["pickle", "torch", "truncated"])
def test_when_a_checkpoint_is_spoilt_then_it_is_refused_and_not_executed(
    refused: Callable[..., None], workplace: Path, content: str
) -> None:
    path = workplace / "run/checkpoints/best.ckpt"
    if content == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": Trap()}))
    elif content == "torch":
        torch.save({"state_dict": Trap()}, path)
    else:
        path.write_bytes(path.read_bytes()[:3000])
    for words in (FIT, ("test", "--config", "config.yaml"), ("predict", "--config", "config.yaml")):
        refused((*words, "--ckpt_path", "run/checkpoints/best.ckpt"), "checkpoint", "best.ckpt")


@pytest.fixture
def full_disk() -> Iterator[Callable[[int], None]]:
    """No file may grow beyond a number of bytes, which is how a disk that runs full looks to a program."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    "words",
    [
        ("--output", "out.csv"),
        ("--output", "out.parquet"),
        ("--output", "out.json"),
        ("--output", "small.csv", "--plot", "out.png"),
    ],
    ids=["csv", "parquet", "json", "plot"],
)
def test_when_the_disk_is_full_then_the_forecast_is_not_half_written(
    workplace: Path, capsys: pytest.CaptureFixture[str], full_disk: Callable[[int], None], words: tuple[str, ...]
) -> None:
    (workplace / words[-1]).write_text("the old file")
    plot = "--plot" in words
    full_disk(8000 if plot else 1000)
    result = run(capsys, "forecast", "table.csv", "--horizon", "6" if plot else "50", "--overwrite", *words)
    full_disk(resource.RLIM_INFINITY)
    assert_one_line(result.status, result.err, ("check the path, its rights and the free space",))
    assert (workplace / words[-1]).read_text() == "the old file"
    assert not [p for p in workplace.iterdir() if p.name.startswith(".")]


def test_when_the_disk_is_full_then_no_half_model_folder_is_left(
    workplace: Path, full_disk: Callable[[int], None]
) -> None:
    from tsfm.weights.pretrained import load, save

    model = load("run/model")
    before = listing(workplace)
    full_disk(3000)
    with pytest.raises(OSError, match=r"model\.safetensors|File too large"):
        save(model, "run/model")
    full_disk(resource.RLIM_INFINITY)
    assert listing(workplace) == before
    load("run/model")


def start(*words: str, folder: Path) -> subprocess.Popen[str]:
    """The command as a process of its own, from the checkout."""
    path = os.pathsep.join(map(str, (ROOT, ROOT / "data", ROOT / "vision")))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "tsfm", *words], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        # In the background of a shell SIGINT is ignored, and a child would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


@pytest.mark.slow
def test_when_the_command_is_a_process_then_its_status_and_line_are_the_same(workplace: Path) -> None:
    commands = {
        ("forecast", "nothing.csv", "--horizon", "3"): "nothing.csv: no such file",
        ("forecast", "table.csv", "--horizn", "3"): "did you mean --horizon",
        ("forcast",): "unknown command 'forcast'",
    }
    processes = {start(*words, folder=workplace): part for words, part in commands.items()}
    for process, part in processes.items():
        out, err = process.communicate(timeout=120)
        assert out == ""
        assert_one_line(process.returncode, err, (part,))


@pytest.mark.slow
def test_when_training_is_interrupted_then_the_last_checkpoint_is_whole_and_training_goes_on_from_it(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(workplace / "run")
    config = workplace / "config.yaml"
    config.write_text(config.read_text().replace("patience: 3", "patience: 100000"))
    process = start(*FIT, "--trainer.max_epochs", "100000", folder=workplace)
    last = workplace / "run/checkpoints/last.ckpt"
    deadline = time.monotonic() + 300
    while not last.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    try:
        _, err = process.communicate(timeout=300)
    finally:
        process.kill()  # a process that did not stop would go on for ever
    assert_one_line(process.returncode, err, ("interrupted in epoch", "--ckpt_path run/checkpoints/"))
    assert not list((workplace / "run").rglob(".*"))
    named = err.split()[-1]  # best.ckpt where Ctrl-C came after it and before last.ckpt
    assert named.endswith(("best.ckpt", "last.ckpt"))
    epoch = torch.load(workplace / named, weights_only=True)["epoch"]
    output = done(capsys, *FIT, "--ckpt_path", named, "--trainer.max_epochs", str(epoch + 2))
    assert f"trained {epoch + 2} epochs" in output


def test_when_a_checkpoint_was_named_but_not_written_before_an_interruption_then_another_one_is_named(
    tmp_path: Path,
) -> None:
    from pytorch_lightning import Trainer
    from pytorch_lightning.callbacks import ModelCheckpoint

    from tsfm.commands.checkpoints import interruption_message

    best, last = ModelCheckpoint(tmp_path, monitor="val_loss"), ModelCheckpoint(tmp_path)
    trainer = Trainer(callbacks=[best, last], accelerator="cpu", logger=False, enable_progress_bar=False)
    last.best_model_path = str(tmp_path / "last.ckpt")
    assert "before the first checkpoint" in interruption_message(trainer)
    best.best_model_path = str(tmp_path / "best.ckpt")
    (tmp_path / "best.ckpt").touch()
    assert interruption_message(trainer).endswith("best.ckpt")
