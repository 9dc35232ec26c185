"""The soak: what it counts as lost, that it goes on where it stopped, and a dozen kills of real commands."""

import json
import signal
from pathlib import Path

import pytest
import soak
import soak_trials
import trials
from command import script
from soak_cases import Case, tree


@pytest.fixture
def undisturbed(tmp_path: Path) -> soak_trials.Undisturbed:
    """A case whose command writes one file."""
    results = []
    for text in ("new", "old"):
        (tmp_path / "seed/out").mkdir(parents=True, exist_ok=True)
        (tmp_path / "seed/out/a").write_text(text)
        results.append(tree(tmp_path / "seed/out"))
    return soak_trials.Undisturbed(tmp_path / "seed", results[1], results[0], 0.2)


FAULTY = {
    "half-written": "open('out/a', 'w').write('ne'); time.sleep(9)",
    "left behind": "open('out/.b.tsfm-part', 'w'); time.sleep(9)",
    "a process left": "os.fork() or signal.pause(); time.sleep(9)",
}


@pytest.mark.parametrize("kind", FAULTY)
def test_when_a_command_is_faulty_then_the_soak_says_so(
    tmp_path: Path, undisturbed: soak_trials.Undisturbed, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "PATIENCE", 0.1)
    script = f"import os, signal, time\n{FAULTY[kind]}"
    calls = tmp_path / "calls"

    def before() -> None:
        calls.write_text(calls.read_text() + "." if calls.exists() else ".")
        if len(calls.read_text()) == 1:
            exec(script)
        Path("out/a").write_text("new")

    row = soak_trials.kill(
        Case(("--version",), ("x",), before=before), undisturbed, tmp_path / "work", signal.SIGKILL, 1.0
    )
    assert row["status"] == -signal.SIGKILL
    expected = {"half-written": "neither the old nor the new", "left behind": "left behind", "a process left": "1 proc"}
    assert [problem for problem in row["problems"] if expected[kind] in problem], row


def test_when_a_plan_is_made_then_kills_cover_the_whole_run_of_every_command() -> None:
    rows = [row for row in soak.plan(200, 2, list(soak.CASES), 0) if row["fault"] == "kill"]
    assert len(rows) >= 200
    for name in soak.CASES:
        shares = [row["share"] for row in rows if row["command"] == name]
        assert min(shares) < 0.3
        assert max(shares) > 0.8
    assert {row["signal"] for row in rows} == {signal.SIGKILL, signal.SIGTERM, signal.SIGINT}


@pytest.mark.slow
def test_when_commands_are_killed_a_dozen_times_then_nothing_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--kills", "12", "--faults", "0", "--runs", str(tmp_path / "runs"), "--output", str(tmp_path)]
    words += ["--commands", "fit", "data build", "forecast"]
    said = script(capsys, soak.main, *words)
    assert said.status == 0, said.err
    assert "12 kills, 0 lost" in said.out
    rows = json.loads((tmp_path / "soak.json").read_text())["rows"]
    assert {row["signal"] for row in rows} == {"SIGKILL", "SIGTERM", "SIGINT"}
    again = script(capsys, soak.main, *words)  # nothing is left to do
    assert "undisturbed" not in again.out.split("# Kills")[0]
    assert (tmp_path / "soak.md").read_text() in again.out
