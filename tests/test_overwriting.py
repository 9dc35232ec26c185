"""What is there stays there: no command replaces an output unasked, and none ever replaces what it reads."""

import importlib
import inspect
from pathlib import Path

import pytest
from command import done, listing, run, waves

from tsfm.commands.cli import COMMANDS
from tsfm_data.errors import InputError
from tsfm_data.io import check_new

# Commands that go on in their folder (a sweep, a corpus), or refuse a folder that is not their own (the demo).
OWNERS = {"scaling sweep", "data build", "demo"}
IMAGES = ("evaluate", "predict", "explain", "finetune")
FORECAST = ("forecast", "table.csv", "--horizon", "3", "--model", "naive")
# What a command would write -> the command, but for the place where it writes.
FILES = {
    "forecast.csv": (*FORECAST, "--output"),
    "forecast.png": (*FORECAST, "--plot"),
    "scores.json": ("evaluate", "--model", "naive", "--data", "table.csv", "--horizon", "3", "--json"),
    "suite.json": ("evaluate", "--model", "naive", "--suite", "bench", "--json"),
    "model.onnx": ("export", "--output"),
    "config.yaml": ("configs", "copy", "itransformer/base", "--output"),
    "counts.json": ("scaling", "counts", "--json"),
    "plan.json": ("scaling", "plan", "fit.json", "--flops", "1e17", "--json"),
    "models.json": ("weights", "list", "--json"),
    "sets.json": ("data", "list", "--json"),
    "inspected.json": ("data", "inspect", "table.csv", "--json"),
    "overlap.json": ("data", "overlap", "corpus", "--json"),
    "gallery.png": ("data", "gallery"),
    "images.json": ("image", "evaluate", "images", "--json"),
    "calibration.png": ("image", "evaluate", "images", "--plot"),
    "classes.csv": ("image", "predict", "images", "--output"),
    "maps.png": ("image", "explain", "images", "--output"),
}
# A file in the folder that a command would write -> the command.
FOLDERS = {
    "tuned/result.json": ("finetune", "table.csv", "--horizon", "3", "--output"),
    "images/config.json": ("image", "finetune", "pictures", "--output"),
    "converted/config.json": ("weights", "convert", "checkpoint.pth"),
    "mirror/tsfm-decoder-small/config.json": ("weights", "mirror", "tsfm-decoder-small"),
    "report/fit.json": ("scaling", "fit", "ledger.csv", "--output"),
    "pages/report.html": ("evaluate", "--model", "naive", "--suite", "bench", "--output"),
}


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own folder with a table."""
    monkeypatch.chdir(tmp_path)
    waves().to_csv("table.csv", index=False)
    return tmp_path


def test_when_a_command_writes_an_output_then_it_takes_overwrite() -> None:
    functions = {name: function for name, (function, _) in COMMANDS.items() if not function.endswith("train:train")}
    functions |= {f"image {name}": f"tsfm_vision.commands:{name}" for name in IMAGES}
    writing = set()
    for name, place in functions.items():
        module, function = place.split(":")
        parameters = inspect.signature(getattr(importlib.import_module(module), function)).parameters
        files = {key for key, parameter in parameters.items() if parameter.annotation is not bool}
        if files & {"output", "json", "plot"} and name not in OWNERS:
            writing.add(name)
            assert "overwrite" in parameters, name
    assert {"forecast", "finetune", "export", "scaling fit", "image finetune"} <= writing


@pytest.mark.parametrize("name", FILES)
def test_when_an_output_is_there_then_it_is_kept_and_one_line_says_so(
    workplace: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    Path(name).write_text("mine")
    result = run(capsys, *FILES[name], name)
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert f"found {name}" in result.err
    assert "--overwrite" in result.err
    assert Path(name).read_text() == "mine"


@pytest.mark.parametrize("name", FOLDERS)
def test_when_a_folder_holds_an_output_then_it_is_kept_and_one_line_says_so(
    workplace: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    Path(name).parent.mkdir(parents=True)
    Path(name).write_text("mine")
    result = run(capsys, *FOLDERS[name], name.split("/")[0])
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert name.split("/")[0] in result.err
    assert "--overwrite" in result.err
    assert Path(name).read_text() == "mine"


@pytest.mark.parametrize("name", ["forecast.csv", "forecast.png", "config.yaml", "inspected.json"])
def test_when_overwriting_is_asked_for_then_the_output_is_replaced(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    Path(name).write_text("mine")
    done(capsys, *FILES[name], name, "--overwrite")
    assert Path(name).read_bytes() != b"mine"


@pytest.mark.parametrize("name", ["tuned", "images", "converted", "mirror"])
def test_when_a_folder_is_not_of_the_command_then_not_even_overwriting_replaces_it(
    workplace: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    words = next(words for file, words in FOLDERS.items() if file.startswith(name))
    place = Path(name, "tsfm-decoder-small" if name == "mirror" else "")
    place.mkdir(parents=True)
    (place / "letter.txt").write_text("dear")
    before = listing(workplace)
    assert f"found {place}" in run(capsys, *words, name, "--overwrite").err
    assert listing(workplace) == before


def test_when_the_demo_is_sent_to_a_folder_of_something_else_then_it_is_left_as_it_is(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = listing(workplace)
    assert "expected a new folder" in run(capsys, "demo", "--output", ".").err
    assert listing(workplace) == before


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
@pytest.mark.parametrize("output", ["table.csv", "./table.csv", "link.csv"])
def test_when_an_output_is_the_input_then_it_is_refused_always(
    capsys: pytest.CaptureFixture[str], output: str, overwrite: tuple[str, ...]
) -> None:
    Path("link.csv").symlink_to("table.csv")
    before = Path("table.csv").read_bytes()
    assert "that is not an input" in run(capsys, *FORECAST, "--output", output, *overwrite).err
    assert Path("table.csv").read_bytes() == before


@pytest.mark.parametrize("place", ["/proc", "table.csv"])
@pytest.mark.parametrize("name", [*FILES, *(name.split("/")[0] for name in FOLDERS)])
def test_when_an_output_cannot_be_written_then_it_is_noticed_before_the_work(
    workplace: Path, capsys: pytest.CaptureFixture[str], name: str, place: str
) -> None:
    words = FILES.get(name) or next(words for file, words in FOLDERS.items() if file.startswith(f"{name}/"))
    before = listing(workplace)
    result = run(capsys, *words, f"{place}/{name}")
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert f"found the file {workplace / place}" in result.err if place == "table.csv" else "/proc (" in result.err
    assert listing(workplace) == before


# Inputs of the commands above, besides the table -> what they hold.
INPUTS = {"fit.json": "{}", "checkpoint.pth": "", "ledger.csv": "params\n", "images/a.png": "", "pictures/a.png": ""}
INPUTS |= {"corpus/manifest.json": "{}"}


GIVEN = {"table.csv", *(file.split("/")[0] for file in INPUTS)}
REPLACED = ("tuned/result.json", "images/config.json", "converted/config.json")  # folders that are replaced as a whole


@pytest.mark.parametrize("name", [name for name, words in {**FILES, **FOLDERS}.items() if GIVEN & {*words}])
def test_when_the_output_of_any_command_is_its_input_or_holds_it_then_the_input_stays(
    workplace: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    for file, text in INPUTS.items():
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).write_text(text)
    words = {**FILES, **FOLDERS}[name]
    before = listing(workplace)
    for given in (*(GIVEN & {*words}), *(["."] if name in REPLACED else [])):
        for output in (given, f"./{given}", f"{workplace}/{given}"):
            assert run(capsys, *words, output, "--overwrite").status == 2
    assert listing(workplace) == before


def test_when_a_folder_to_be_replaced_holds_an_input_then_it_is_refused() -> None:
    Path("run").mkdir()
    Path("run/table.csv").write_text("mine")
    Path("run/result.json").write_text("{}")
    with pytest.raises(InputError, match="not an input"):
        check_new([Path("run")], True, ["run/table.csv"], sign="result.json")
    check_new([Path("run"), Path("new"), None, Path("-")], True, ["table.csv", None], sign="result.json")
