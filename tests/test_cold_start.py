"""The benchmark of a first forecast measures complete forecasts, and reports mistakes."""

import json
from pathlib import Path

import cold_start
import pytest
from command import script


@pytest.mark.slow
def test_when_a_first_forecast_is_timed_then_seconds_and_memory_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--repeats", "1", "--threads", "1", "--output", str(tmp_path)]
    assert script(capsys, cold_start.main, *words).status == 0
    found = json.loads((tmp_path / "cold_start.json").read_text())
    assert len(found["rows"]) == 1
    assert 0.5 < found["rows"][0]["cpu_seconds"] < 60
    assert 100 < found["rows"][0]["peak_mib"] < 1024  # the aim holds on any machine; the seconds do not
    assert "python benchmarks/cold_start.py --repeats 1" in (tmp_path / "cold_start.md").read_text()


def test_when_no_repeat_is_asked_then_one_line_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = script(capsys, cold_start.main, "--repeats", "0", "--output", str(tmp_path))
    assert result.status == 2
    assert "expected repeats" in result.err
