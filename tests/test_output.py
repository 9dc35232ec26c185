"""Lines on a terminal and cells of a CSV: no control character, no formula and no endless line of a foreign file."""

import ast
import unicodedata
from pathlib import Path

import pandas as pd
import pytest
from command import run
from sources import ROOT

from tsfm.commands.cli import end_with
from tsfm_data.output import ERROR, printable

HOSTILE = ("\x1b[31mred\x1b[0m", "\x07", "\x9b1m", "\u202etxt", "\ud800", "a" * 9000, "x\ry", "\x00")


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_a_printed_line_has_no_control_character_and_is_bounded(text: str) -> None:
    line = printable(text, ERROR)
    assert len(line) <= ERROR
    assert not any(unicodedata.category(mark) in ("Cc", "Cs") for mark in line)
    line.encode()


def test_text_without_control_characters_stays_as_it_is() -> None:
    text = "Zürich: 1\t2\n東京 💥"
    assert printable(text) == text


def test_an_error_about_a_hostile_name_is_one_printable_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    result = run(capsys, "forecast", str(tmp_path / f"\x1b[2J{'n' * 5000}\x07.csv"), "--horizon", "3")
    assert result.status == 2
    assert result.err.count("\n") == 1
    assert "\x1b" not in result.err
    assert len(result.err) < 1200
    assert result.err.endswith("check the path, its rights and the free space\n")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        UnicodeEncodeError("latin-1", "💥", 0, 1, "ordinal not in range(256)"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_too_little_memory_and_an_unfit_encoding_end_in_one_line(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> int:
        raise error

    with pytest.raises(SystemExit) as end:
        end_with(command)
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert said.startswith("tsfm: error: expected")
    assert said.count("\n") == 1


def test_a_defect_stays_a_defect() -> None:
    def command() -> int:
        raise TypeError("ours")

    with pytest.raises(TypeError):
        end_with(command)


def test_commands_print_only_printable_text() -> None:
    """They print by ``say`` and ``note`` alone; ``doctor`` and ``configs`` show our own text."""
    files = [*(ROOT / "tsfm/commands").glob("*.py"), *(ROOT / "vision/tsfm_vision/commands").glob("*.py")]
    for file in files:
        if file.stem in ("doctor", "configs", "cli"):
            continue
        calls = [node.func for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
        assert not any(isinstance(call, ast.Name) and call.id == "print" for call in calls), file


def test_when_a_csv_must_be_safe_then_ids_and_headers_are_no_formulas(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ids = ("=1+1", "@SUM(A1)", "-x", "plain")
    days = pd.date_range("2024-01-01", periods=8)
    table = pd.concat([pd.DataFrame({"id": i, "=date": days, "y": -1.5}) for i in ids])
    table.to_csv(tmp_path / "t.csv", index=False)
    words = ("forecast", str(tmp_path / "t.csv"), "--time-column", "=date", "--horizon", "2", "--model", "naive")
    plain, safe = (run(capsys, *words, *more).out.splitlines() for more in ((), ("--safe-csv",)))
    assert [line.split(",")[0] for line in plain[1::2]] == list(ids)
    assert [line.split(",")[0] for line in safe[1::2]] == ["'=1+1", "'@SUM(A1)", "'-x", "plain"]
    assert safe[0].startswith("id,'=date,")
    assert [line.split(",")[2:] for line in safe] == [line.split(",")[2:] for line in plain]
    output = tmp_path / "safe.csv"
    assert run(capsys, *words, "--safe-csv", "--output", str(output)).status == 0
    assert output.read_text().splitlines() == safe


def test_what_is_asked_past_the_calendar_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pd.DataFrame({"date": pd.date_range("2024-01-01", periods=20), "v": 1.0}).to_csv(tmp_path / "t.csv", index=False)
    for horizon in ("100000", "1000000000"):
        result = run(capsys, "forecast", str(tmp_path / "t.csv"), "--horizon", horizon, "--model", "naive")
        assert (result.status, result.err.count("\n")) == (2, 1), result.err
