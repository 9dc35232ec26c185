"""The GPU lab runs to its end whatever one of its sections does, and all of it runs on a CPU at tiny sizes."""

import importlib
import json
from pathlib import Path
from typing import Any

import gpu_lab
import pytest
import torch
from command import script
from gpu_lab import SECTIONS, Section, page, results, targets


@pytest.mark.slow
def test_when_a_section_fails_dies_or_hangs_then_its_rows_are_kept_and_the_next_one_runs() -> None:
    names = ("broken", "dead", "endless", "good")
    sections = {name: Section(f"lab_sections:{name}", 8 if name == "endless" else 60, name) for name in names}
    found = dict(results(sections, "cpu", 300))
    assert found["broken"]["status"] == "failed: RuntimeError: an illegal memory access"
    assert found["dead"]["status"] == "failed: the process ended with status 7"
    assert found["endless"]["status"] == "stopped after 8 s"
    assert [found[name]["rows"] for name in names[:3]] == [[{"row": 1}], [{"row": 2}], [{"row": 3}]]
    assert found["good"]["status"] == "done"
    assert found["good"]["rows"][0] == {"device": "cpu", "tiny": True}
    text = page(found, sections, "cpu", "2026-11-30", "a command")
    assert "failed: RuntimeError: an illegal memory access" in text
    assert "0.1235" in text
    assert "the times mean nothing" in text


def test_when_the_time_is_over_then_the_rest_is_reported_and_not_started() -> None:
    found = dict(results({"good": Section("lab_sections:good", 60, "")}, "cpu", 0.5))
    assert found["good"]["status"] == "not started: the time was over"


def test_when_all_sections_take_their_time_then_it_is_eight_minutes_at_most() -> None:
    assert sum(section.seconds for section in SECTIONS.values()) <= 480


def test_when_rows_are_measured_then_each_target_is_judged_by_the_lowest() -> None:
    found = {
        "training": {"rows": [{"size": "1M", "utilisation": 0.1}, {"size": "100M", "utilisation": 0.5},
                              {"size": "300M", "utilisation": 0.44}, {"size": "300M", "problem": "no memory"}]},
        "kernels": {"rows": [{"kernel": "packed", "times padded": 2.0}, {"kernel": "flex", "times padded": 1}]},
        "vision": {"rows": [{"compared with": "timm", "ratio": 1.2}, {"compared with": "reference", "ratio": 0.5}]},
    }  # fmt: skip
    assert [(row["lowest measured"], row["met"]) for row in targets(found)] == [(0.44, False), (2.0, True), (1.2, True)]
    assert targets({}) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--sections", "kernel"), "did you mean kernels"),
        (("--minutes", "0"), "minutes: expected more than 0"),
        ((), "expected a CUDA device, found none: give --device cpu"),
    ],
)
def test_when_the_lab_cannot_run_then_one_line_says_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = script(capsys, gpu_lab.main, *words)
    assert result.status == 2
    assert message in result.err
    assert len(result.err.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def trial() -> dict[str, Any]:
    """All sections on a CPU, in this process: the imports of one process each would take most of the time."""
    found = {}
    for name, section in SECTIONS.items():
        module, function = section.function.split(":")
        rows = list(getattr(importlib.import_module(module), function)("cpu", True))
        found[name] = {"status": "done", "seconds": 0.0, "rows": rows}
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile", "ignore:.*profiler.*")
def test_when_the_lab_is_tried_on_a_cpu_then_every_section_gives_rows_and_what_is_checked_is_right(
    trial: dict[str, Any],
) -> None:
    for name, section in trial.items():
        assert section["rows"], name
        assert not [row for row in section["rows"] if "problem" in row], name
    for name in ("exact", "models"):
        assert all(row["right"] for row in trial[name]["rows"]), name
    assert all(row["finite"] for row in trial["vision"]["rows"])
    assert all("aten::" in row["took longest"] for row in trial["operators"]["rows"])
    errors = [row["error"] for row in trial["kernels"]["rows"] if row["error"] != ""]
    assert len({row["kernel"] for row in trial["kernels"]["rows"]}) == 5
    assert max(errors) < 4e-2
    text = page(trial, SECTIONS, "cpu", "2026-11-30", "a command")
    assert all(f"## {name.capitalize()}" in text for name in SECTIONS)
    assert targets(trial)


@pytest.mark.slow
def test_when_the_lab_runs_then_both_files_are_written_and_the_end_of_a_section_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SECTIONS, "machine", SECTIONS["machine"]._replace(seconds=240))  # other work may run
    words = ("--device", "cpu", "--sections", "machine", "--output", str(tmp_path))
    result = script(capsys, gpu_lab.main, *words)
    assert result.status == 0, result.err
    assert "machine: done, " in result.out
    found = json.loads((tmp_path / "gpu_lab.json").read_text())
    assert found["summary"]["device"] == "cpu"
    assert found["sections"]["machine"]["rows"][1]["device"] == "torch"
    assert "## Machine" in (tmp_path / "gpu_lab.md").read_text()
