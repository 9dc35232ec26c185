"""``tsfm scaling``: from a table to a report and a plan, the same bytes every time."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from command import done, run

from tsfm import scaling
from tsfm.scaling.laws.form import NAMES, JointLaw
from tsfm.scaling.record import DataRecord, FitRecord, JointRecord, LawRecord, PlanRecord, RunsRecord
from tsfm.scaling.selftest import CHINCHILLA, PLANTED, planted_runs
from tsfm_data.errors import InputError

ALL_OF_A_LAW = set(PlanRecord.__annotations__) | set(LawRecord.__annotations__)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger of a planted law, two groups of it, and the fit."""
    from tsfm.commands.cli import main

    folder = tmp_path_factory.mktemp("scaling")
    runs = planted_runs("isoflop", 60, 0.003, seed=2)
    table = pd.DataFrame({"params": runs.params, "tokens": runs.tokens, "loss": runs.loss})
    table["unique"] = table["tokens"] / np.where(np.arange(len(table)) % 3, 1.0, 4.0)
    table["arch"] = np.where(np.arange(len(table)) % 2, "encoder", "decoder")
    table.to_csv(folder / "ledger.csv", index=False)
    for name in ("one", "two"):
        words = ["--output", str(folder / name), "--draws", "200", "--group", "arch", "--unique", "unique"]
        with pytest.raises(SystemExit) as end:
            main(["scaling", "fit", str(folder / "ledger.csv"), *words])
        assert not end.value.code
    return folder


@pytest.mark.slow
def test_fit_writes_report_numbers_and_figures_that_are_the_same_each_time(folder: Path) -> None:
    names = {str(path.relative_to(folder / "one")) for path in (folder / "one").rglob("*") if path.is_file()}
    figures = {f"figures/{name}.{kind}" for name in FIGURES for kind in ("svg", "pdf")}
    assert names == {"fit.json", "report.html"} | figures
    for name in names:
        assert (folder / "one" / name).read_bytes() == (folder / "two" / name).read_bytes(), name


FIGURES = ("loss", "surface", "isoflop", "frontier", "residuals", "draws", "extrapolation")


@pytest.mark.slow
def test_fit_json_holds_the_joint_law_and_its_intervals(folder: Path) -> None:
    record = json.loads((folder / "one" / "fit.json").read_text())
    joint = record["joint"]
    for name, true in zip(NAMES, PLANTED, strict=True):
        low, high = joint["ci95"][name]
        assert low < joint[name] < high
        assert low < true < high
    assert record["groups"]["pairs"][0]["p_one_law"] > 0.01
    assert set(record) == set(FitRecord.__annotations__) | ALL_OF_A_LAW
    for law in (record, *record["groups"]["laws"].values()):
        assert set(law) >= ALL_OF_A_LAW
        assert set(law["joint"]) == set(JointRecord.__annotations__)
        assert set(law["data"]) == set(DataRecord.__annotations__)
        assert set(law["runs"]) == set(RunsRecord.__annotations__)
    assert {row["fit"] for row in record["sensitivity"]} >= {"as fitted", "E = 0", "least squares"}


@pytest.mark.slow
def test_report_is_one_file_that_shows_every_part(folder: Path) -> None:
    html = (folder / "one" / "report.html").read_text()
    assert html.count("data:image/svg+xml") == len(FIGURES)
    assert "http" not in html.replace("http-equiv", "")
    for words in (
        "Joint law",
        "Bias of approach 2",
        "How far to trust it",
        "Do the groups differ?",
        "Repeated data",
        "SHA-256",
    ):
        assert words in html


@pytest.mark.slow
def test_plan_is_the_optimum_of_the_law_with_its_interval(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit, out = str(folder / "one" / "fit.json"), folder / "plan.json"
    text = done(capsys, "scaling", "plan", fit, "--flops", "1e20", "--json", str(out), "--overwrite")
    assert "warning" not in text
    plan, law = json.loads(out.read_text()), JointLaw(*PLANTED)
    low, high = plan["ci95"]["params"]
    assert low < float(law.optimal_params(1e20)) < high
    assert 6 * plan["params"] * plan["tokens"] == pytest.approx(1e20)
    for words in (("--params", str(plan["params"])), ("--tokens", str(plan["tokens"])), ("--loss", str(plan["loss"]))):
        done(capsys, "scaling", "plan", fit, *words, "--json", str(out), "--overwrite")
        again = json.loads(out.read_text())
        assert again["flops"] == pytest.approx(1e20, rel=1e-6)


@pytest.mark.slow
def test_plan_of_a_budget_names_a_real_size_that_it_pays_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit, out = str(folder / "one" / "fit.json"), folder / "plan.json"
    done(capsys, "scaling", "plan", fit, "--flops", "1e17", "--group", "encoder", "--json", str(out), "--overwrite")
    plan = json.loads(out.read_text())
    near = plan["nearest"]
    assert plan["beyond_data"]
    assert near["beyond_data"]
    assert 0.99e17 < near["flops"] <= 1e17
    low, high = near["loss_prediction95"]
    assert low < near["loss"] < high
    assert near["loss"] >= plan["loss"] * (1 - 1e-9)
    done(capsys, "scaling", "plan", fit, "--flops", "1e17", "--unique-tokens", "1e7", "--json", str(out), "--overwrite")
    assert json.loads(out.read_text())["loss"] > plan["loss"]


@pytest.mark.slow
def test_figures_of_an_earlier_fit_do_not_survive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = planted_runs("isoflop", 60, 0.003, seed=2)
    table = pd.DataFrame({"params": runs.params, "tokens": runs.tokens, "loss": runs.loss})
    for part in (table, table[:4]):
        part.to_csv(tmp_path / "ledger.csv", index=False)
        words = ("--output", str(tmp_path / "out"), "--draws", "100", "--overwrite")
        done(capsys, "scaling", "fit", str(tmp_path / "ledger.csv"), *words)
    assert {path.name for path in (tmp_path / "out" / "figures").iterdir()} == {"loss.svg", "loss.pdf"}


@pytest.mark.slow
def test_groups_with_different_laws_have_no_common_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = planted_runs("grid", 49, 0.003, seed=2)
    table = pd.DataFrame({"params": runs.params, "tokens": runs.tokens, "loss": runs.loss, "arch": "a"})
    other = table.assign(loss=table["loss"] * 1.05, arch="b")
    alone = table[:1].assign(arch="c")
    pd.concat([table, other, alone]).to_csv(tmp_path / "ledger.csv", index=False)
    out = str(tmp_path / "out")
    text = done(capsys, "scaling", "fit", str(tmp_path / "ledger.csv"), "--output", out, "--group", "arch")
    assert "a and b do not follow one law" in text
    assert "not identifiable from 1 runs of 'c'" in text
    record = json.loads((tmp_path / "out" / "fit.json").read_text())
    assert (record["joint"]["identifiable"], record["optimal"]) == (False, [])
    assert record["groups"]["laws"]["b"]["joint"]["E"] == pytest.approx(1.05 * PLANTED[0], rel=0.02)
    result = run(capsys, "scaling", "plan", f"{out}/fit.json", "--flops", "1e20")
    assert (result.status, "--group with one of a, b, c" in result.err) == (2, True)
    done(capsys, "scaling", "plan", f"{out}/fit.json", "--flops", "1e20", "--group", "a")


@pytest.mark.slow
def test_plan_for_inference_is_smaller_and_no_other_size_is_better(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit, out = str(folder / "one" / "fit.json"), folder / "plan.json"
    record = json.loads((folder / "one" / "fit.json").read_text())["joint"]
    law = JointLaw(*(record[name] for name in NAMES))
    words = ["--flops", "1e20", "--inference-tokens", "1e10", "--overwrite", "--json"]
    done(capsys, "scaling", "plan", fit, *words, str(out))
    plan = json.loads(out.read_text())
    assert plan["flops"] + plan["inference_flops"] == pytest.approx(1e20)
    sizes = plan["params"] * np.geomspace(0.5, 2, 41)
    tokens = (1e20 - 2e10 * sizes) / (6 * sizes)
    assert plan["loss"] <= np.min(law.loss(sizes, tokens)) + 1e-9
    assert plan["params"] < float(law.optimal_params(1e20))
    done(
        capsys,
        "scaling",
        "plan",
        fit,
        "--loss",
        str(plan["loss"]),
        "--inference-tokens",
        "1e10",
        "--json",
        str(out),
        "--overwrite",
    )
    assert json.loads(out.read_text())["params"] == pytest.approx(plan["params"], rel=1e-3)


@pytest.mark.slow
def test_plan_names_the_nearest_model_its_time_and_its_command(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit, out = str(folder / "one" / "fit.json"), folder / "plan.json"
    words = ("--params", "1.2e6", "--tokens", "1e7", "--arch", "decoder", "--batch-size", "100", "--corpus", "corpus/x")
    ledger = folder / "timed.csv"
    steps = [100, 200, 400, 100]
    flops = [1e10, 2e10, 4e10, 1e12]
    wall = [step * 0.01 + flop * 1e-11 for step, flop in zip(steps, flops, strict=True)]
    pd.DataFrame({"steps": steps, "flops": flops, "wall_s": wall}).to_csv(ledger, index=False)
    output = done(
        capsys,
        "scaling",
        "plan",
        fit,
        *words,
        *("--ledger", str(ledger), "--machine", "gaia", "--json", str(out), "--overwrite"),
    )
    near = json.loads(out.read_text())["nearest"]
    assert (near["size"], near["params"], near["steps"]) == ("1M", 1_876_864, round(1e7 / 100 / 10))
    assert near["seconds"] == pytest.approx(near["steps"] * 0.01 + near["flops"] * 1e-11, rel=1e-3)
    assert "time on gaia: about" in output
    command = next(line for line in output.splitlines() if line.startswith("tsfm fit"))
    assert command == near["command"]
    assert "--data.corpus corpus/x" in command
    assert "--model.forecaster tsfm.models.scaling_law.decoder.Decoder --model.forecaster.config 1M" in command
    done(capsys, "scaling", "plan", fit, *words, "--throughput", "1e10", "--json", str(out), "--overwrite")
    near = json.loads(out.read_text())["nearest"]
    assert near["seconds"] == pytest.approx(near["flops"] / 1e10)


@pytest.mark.slow
def test_plan_without_a_model_near_it_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit = str(folder / "one" / "fit.json")
    assert "times off the plan" in done(capsys, "scaling", "plan", fit, "--params", "1e11", "--tokens", "1e10")


@pytest.mark.slow
def test_command_of_a_plan_trains(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tsfm.scaling.nearest_model import command

    monkeypatch.chdir(tmp_path)
    words = command("encoder", "1K", 64, 32, 4, 2).replace("--data.corpus CORPUS ", "")
    fast = "--data.val_windows 8 --trainer.default_root_dir run --data.prefetch 0 --trainer.accelerator cpu"
    done(capsys, *f"{words} {fast} --data.batches_per_epoch 2 --trainer.enable_progress_bar false".split()[1:])
    config = json.loads((tmp_path / "run/model/config.json").read_text())
    assert (config["model_type"], config["config"]["d_model"], config["pretraining"]["steps"]) == ("encoder", 8, 2)


@pytest.mark.slow
def test_plan_far_beyond_the_data_is_warned_of(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit = str(folder / "one" / "fit.json")
    assert "times that of the largest run" in done(capsys, "scaling", "plan", fit, "--flops", "1e23")
    assert "no law is known to hold so far from the data" in done(capsys, "scaling", "plan", fit, "--flops", "1e25")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "part"),
    [
        ((), "found none"),
        (("--flops", "1e20", "--loss", "2"), "found flops and loss"),
        (("--flops", "-1"), "above 0"),
        (("--loss", "1.0"), "irreducible loss"),
        (("--flops", "many"), "invalid float"),
        (("--flop", "1e20"), "did you mean --flops"),
        (("--flops", "1e20", "--arch", "moirai"), "named sizes"),
        (("--flops", "1e20", "--arch", "encodr"), "did you mean"),
        (("--flops", "1e20", "--throughput", "0"), "above 0"),
        (("--flops", "1e20", "--ledger", "no.csv"), "no.csv"),
        (("--flops", "1e20", "--params", "1e9", "--inference-tokens", "1e12"), "nothing is left for training"),
        (("--flops", "1e3"), "one step of the smallest"),
        (("--flops", "1e20", "--group", "encodr"), "did you mean encoder"),
        (("--params", "1e9", "--unique-tokens", "1e9"), "give a budget"),
    ],
)
def test_plan_that_cannot_be_made_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], part: str
) -> None:
    result = run(capsys, "scaling", "plan", str(folder / "one" / "fit.json"), *words)
    assert result.status == 2
    assert part in result.err
    assert result.err.count("\n") == 1


def test_fit_that_is_not_identifiable_says_so_and_gives_no_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = planted_runs("grid", 64, 0.003, seed=0)
    two = runs.select(np.isin(runs.params, np.unique(runs.params)[[0, 1]]))
    table = pd.DataFrame({"params": two.params, "tokens": two.tokens, "loss": two.loss})
    table.to_csv(tmp_path / "two.csv", index=False)
    out = str(tmp_path / "out")
    assert "not identifiable" in done(capsys, "scaling", "fit", str(tmp_path / "two.csv"), "--output", out)
    assert "not identifiable" in (tmp_path / "out" / "report.html").read_text()
    record = json.loads((tmp_path / "out" / "fit.json").read_text())
    assert record["joint"]["ci95"] == dict.fromkeys((*NAMES, "a"))
    result = run(capsys, "scaling", "plan", f"{out}/fit.json", "--flops", "1e20")
    assert (result.status, "2 different sizes" in result.err) == (2, True)
    result = run(capsys, "scaling", "plan", f"{out}/fit.json", "--flops", "1e20", "--group", "first")
    assert (result.status, "found one law for all runs: leave it out" in result.err) == (2, True)


def test_file_that_is_no_fit_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "fit.json").write_text("[1")
    result = run(capsys, "scaling", "plan", str(tmp_path / "fit.json"), "--flops", "1e20")
    assert (result.status, "fit.json: expected JSON" in result.err) == (2, True)
    result = run(capsys, "scaling", "plan", str(tmp_path / "no.json"), "--flops", "1e20")
    assert (result.status, "no such file" in result.err) == (2, True)


def test_mistake_in_the_ledger_leaves_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.csv").write_text("params,tokens,loss\n1e6,1e7,3\n2e6,1e")
    result = run(capsys, "scaling", "fit", str(tmp_path / "bad.csv"), "--output", str(tmp_path / "out"))
    assert (result.status, "row 3" in result.err) == (2, True)
    assert not (tmp_path / "out").exists()


def test_selftest_passes_and_prints_every_known_answer(data_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (data_folder / CHINCHILLA).is_file()
    text = done(capsys, "scaling", "selftest", "--draws", "1000")
    assert "45 of 45 known answers reproduced" in text
    result = run(capsys, "scaling", "selftest", "--data", "/nowhere")
    assert (result.status, "TSFM_DATA" in result.err) == (2, True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"other": 5}, None),
        ({"loss": [1.0]}, "lists of one length"),
        ({"params": [0.0]}, "runs.params[0]"),
        ({"clusters": [-1]}, "runs.clusters[0]"),
    ],
)
def test_when_the_runs_of_a_fit_are_changed_by_hand_then_it_is_read_or_refused_in_one_line(
    folder: Path, tmp_path: Path, change: dict[str, Any], message: str | None
) -> None:
    record = json.loads((folder / "one" / "fit.json").read_text())
    record["runs"] |= change
    file = tmp_path / "fit.json"
    file.write_text(json.dumps(record))
    if message is None:
        assert scaling.make_plan(scaling.read_fit(file), flops=1e16).values["params"] > 0
    else:
        with pytest.raises(InputError, match=re.escape(message)):
            scaling.read_fit(file)
