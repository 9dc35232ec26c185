"""The command: help, exit status, arguments in every spelling, and what its tables look like."""

import dataclasses
import importlib
import inspect
import json
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pytest
from command import Result, done, run, script, waves

import tsfm
import tsfm.commands.cli
from tsfm.commands.added import added_commands, function_of, outline
from tsfm.commands.arguments import parse
from tsfm.commands.cli import COMMANDS, HEADINGS
from tsfm_data.errors import InputError

BENCHMARKS = sorted(
    path.stem
    for path in (Path(__file__).resolve().parent.parent / "benchmarks").glob("*.py")
    if path.read_text().endswith(("    run(main)\n", "    run_script(main)\n"))
)
ADDED = {name: entry for name, entry in added_commands(COMMANDS).items() if name.startswith("image ")}


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    waves().to_csv(tmp_path / "table.csv", index=False)
    return tmp_path


def test_when_help_is_asked_for_then_every_command_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ((), ("--help",), ("-h",)):
        text = done(capsys, *words)
        lines = [re.fullmatch(r"(\w* +)tsfm (\w+(?: \w+)?)  +(\S.*)", line) for line in text.splitlines()[1:]]
        assert sorted(line[2] for line in lines if line) == sorted([*COMMANDS, *ADDED])
        assert [line[1].strip() for line in lines if line and line[1].strip()] == [*HEADINGS, "other"]
        assert max(map(len, text.splitlines())) <= 100
        assert len(text.splitlines()) < 47
    assert done(capsys, "--version") == f"tsfm {tsfm.__version__}\n"


@pytest.mark.parametrize("group", ["data", "scaling", "image"])
def test_when_help_of_a_group_is_asked_for_then_only_its_commands_are_in_it(
    capsys: pytest.CaptureFixture[str], group: str
) -> None:
    text = done(capsys, group, "--help")
    names = re.findall(rf"tsfm {group} (\w+)  ", text)
    assert len(text.splitlines()) == 1 + len(names)
    assert set(names) == {n.split()[1] for n in (*COMMANDS, *ADDED) if n.startswith(group)}
    alone = run(capsys, group)
    assert (alone.status, alone.out) == (2, text)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if ".train:" in path else name
        for name, (path, *_) in COMMANDS.items()
    ],
)
def test_when_a_command_is_listed_then_its_function_is_there_and_its_help_explains_every_option(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    module, function = COMMANDS[name][0].split(":")
    target = getattr(importlib.import_module(module), function)
    text = " ".join(done(capsys, *name.split(), "--help").split())
    if module.endswith(".train"):  # Lightning's own help
        assert "--config" in text
        return
    assert text.startswith(f"usage: tsfm {name} ")
    for owner, key in options(target):
        assert f"--{key.replace('_', '-')}" in text or f" {key} " in text
        assert f"{key}: " in (inspect.getdoc(owner) or ""), f"tsfm {name}: {key} is not explained"


def options(owner: Any) -> Iterator[tuple[Any, str]]:
    """What a command takes, each with the function or dataclass that explains it."""
    for key, hint in typing.get_type_hints(owner).items():
        if dataclasses.is_dataclass(hint):
            yield from options(hint)
        elif key != "return":
            yield owner, key


@pytest.mark.parametrize("name", ADDED)
def test_when_our_image_package_adds_a_command_then_its_options_are_told_from_its_source(name: str) -> None:
    told, function = outline(ADDED[name]), function_of(ADDED[name])
    assert told is not None
    assert told is not function
    assert inspect.getdoc(told) == inspect.getdoc(function)
    assert inspect.signature(told) == inspect.signature(function)
    for key in inspect.signature(function).parameters:
        assert f"{key}: " in str(inspect.getdoc(function)), f"tsfm {name}: {key} is not explained"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow)
        if name in ("cifar10", "classify", "distributed", "image_finetune", "vision")
        else name
        for name in BENCHMARKS  # those of images import timm
    ],
)
def test_when_help_of_a_benchmark_is_asked_for_then_it_explains_every_option(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    target = importlib.import_module(name).main
    said = script(capsys, target, "--help").out
    assert said.startswith(f"usage: python benchmarks/{name}.py ")
    for key in inspect.signature(target).parameters:
        assert f"--{key.replace('_', '-')}" in said or f"\n  {key} " in said
        assert f"{key}: " in str(inspect.getdoc(target)), f"{name}.py: {key} is not explained"


def test_when_the_benchmarks_are_listed_then_every_script_and_page_is_among_them() -> None:
    folder = Path(__file__).resolve().parent.parent / "benchmarks"
    listed = (folder / "README.md").read_text()
    assert len(BENCHMARKS) > 10
    for path in (*folder.glob("*.py"), *folder.glob("*.md")):
        assert path.name == "README.md" or path.name in listed, f"benchmarks/README.md does not name {path.name}"


def test_when_an_option_is_spelt_with_dashes_underscores_or_equals_then_it_is_the_same(
    capsys: pytest.CaptureFixture[str],
) -> None:
    spellings = (("--batch-size", "2"), ("--batch_size", "2"), ("--batch-size=2",), ("--batch_size=2",))
    text = [done(capsys, "forecast", "table.csv", "--horizon", "2", *words) for words in spellings]
    assert len(set(text)) == 1


@pytest.mark.parametrize("words", [["0.1", "0.5", "0.9"], ["0.1,0.5,0.9"], ["[0.1, 0.5, 0.9]"], ["0.9", "0.5,0.1"]])
def test_when_levels_are_given_in_any_form_then_the_table_has_one_column_each(
    capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    done(capsys, "forecast", "table.csv", "--horizon", "3", "--levels", *words, "--output", "out.csv")
    frame = pd.read_csv("out.csv")
    assert list(frame.columns) == ["item_id", "date", "mean", "0.1", "0.5", "0.9"]
    assert len(frame) == 3 * 3


def sample(
    paths: list[Path],
    *,
    size: int,
    kind: Literal["a", "b"] = "a",
    share: float | None = None,
    wide: bool = False,
    names: list[str] | None = None,
) -> None:
    """Nothing.

    Args:
        paths: files.
        size: a size of 100 %.
        kind: one of two.
        share: a share.
        wide: or narrow.
        names: some.
    """


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("a.csv --size 3", {"paths": [Path("a.csv")], "size": 3}),
        ("a b --size 3 --wide", {"paths": [Path("a"), Path("b")], "size": 3, "wide": True}),
        ("a --size 3 --wide false", {"paths": [Path("a")], "size": 3, "wide": False}),
        ("a --size=3 --kind b --share .5", {"paths": [Path("a")], "size": 3, "kind": "b", "share": 0.5}),
        ("a --size 3 --names x,y z", {"paths": [Path("a")], "size": 3, "names": ["x,y", "z"]}),
        ("a --size 3 --names [x,y]", {"paths": [Path("a")], "size": 3, "names": ["x", "y"]}),
        ("--size -3 -- -a", {"paths": [Path("-a")], "size": -3}),
    ],
)
def test_when_words_are_parsed_then_they_have_the_types_of_the_signature(
    words: str, expected: dict[str, object]
) -> None:
    assert parse("tsfm sample", sample, words.split()) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("a", "required: --size"),
        ("--size 3", "required: paths"),
        ("a --size 3 --kind c", "invalid choice: 'c'"),
        ("a --size 3.5", "invalid int value: '3.5'"),
        ("a --size 3 --wide maybe", "expected true or false, found 'maybe'"),
        ("a --size 3 --siz 4", "unknown option of tsfm sample '--siz': did you mean --size"),
    ],
)
def test_when_a_word_is_wrong_then_the_line_names_it(words: str, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        parse("tsfm sample", sample, words.split())


def test_when_a_forecast_is_written_then_every_format_holds_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("forecast", "table.csv", "--horizon", "4", "--output")
    for suffix in ("csv", "parquet", "json"):
        assert f"out.{suffix}: 3 series, 4 steps each" in done(capsys, *words, f"out.{suffix}")
    csv = pd.read_csv("out.csv", parse_dates=["date"])
    parquet = pd.read_parquet("out.parquet")
    written = json.loads(Path("out.json").read_text())
    assert written["summary"] == {"series": 3, "rows": 12}
    rows = pd.DataFrame(written["rows"]).assign(date=lambda f: pd.to_datetime(f["date"]))
    for other in (parquet, rows):
        pd.testing.assert_frame_equal(csv, other, check_dtype=False, rtol=1e-6)
    printed = done(capsys, *words[:-1])
    assert printed.splitlines()[0] == "item_id,date,mean,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9"
    assert len(printed.splitlines()) == 13


def test_when_a_plot_is_asked_for_then_it_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    done(capsys, "forecast", "table.csv", "--horizon", "24", "--plot", "plots/out.png", "--output", "out.csv")
    assert Path("plots/out.png").read_bytes()[:4] == b"\x89PNG"


def test_when_an_evaluation_is_written_then_there_is_one_row_a_metric_and_model(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("--data", "table.csv", "--horizon", "6", "--json", "out.json", "--overwrite")
    for profile in ("gift", "chronos", "lsf"):
        done(capsys, "evaluate", "--model", "seasonal-naive", *words, "--profile", profile)
        rows = json.loads(Path("out.json").read_text())["rows"]
        assert {(r["dataset"], r["horizon"], r["profile"]) for r in rows} == {("table", 6, profile)}
        names = [(r["model"], r["metric"]) for r in rows]
        assert len(names) == len(set(names))
        wanted = {"MSE", "MAE"} if profile == "lsf" else {"MASE", "WQL"}
        for model in ("naive", "seasonal-naive"):
            assert wanted <= {metric for name, metric in names if name == model}


def test_when_the_reader_of_a_pipe_has_gone_then_only_the_status_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(words: list[str]) -> int:
        raise BrokenPipeError

    monkeypatch.setattr(tsfm.commands.cli, "dispatch", gone)
    assert run(capsys, "forecast") == Result(tsfm.commands.cli.BROKEN_PIPE, "", "")


def test_when_a_command_is_interrupted_then_one_line_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(words: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(tsfm.commands.cli, "dispatch", stop)
    result = run(capsys, "forecast")
    assert (result.status, result.out) == (2, "")
    assert result.err == f"tsfm: error: {tsfm.commands.cli.INTERRUPTED}\n"


def test_when_there_is_a_defect_of_ours_then_the_traceback_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(words: list[str]) -> int:
        raise ValueError("a defect")

    monkeypatch.setattr(tsfm.commands.cli, "dispatch", broken)
    with pytest.raises(ValueError, match="a defect"):
        tsfm.commands.cli.main(["forecast"])
