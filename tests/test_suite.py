"""A suite scores every set once, relative to seasonal naive, with stored baselines and published results."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from baselines import main as baselines
from command import done, run, script

from tsfm_data.errors import InputError
from tsfm_data.evaluation import kept_baselines, published, relative
from tsfm_data.evaluation.baselines import Naive, SeasonalNaive
from tsfm_data.evaluation.evaluator import evaluate
from tsfm_data.evaluation.profiles import PROFILES
from tsfm_data.evaluation.report import Report
from tsfm_data.evaluation.suite import evaluate_suite, score_set
from tsfm_data.evaluation.suite_report import SuiteReport
from tsfm_data.evaluation.suite_sets import ALL_PROFILES, BENCH, SuiteSet, choose, suite_profile
from tsfm_data.evaluation.suite_tables import coverage_points
from tsfm_data.io import catalog
from tsfm_data.windows.batch import Batch, Forecast

FEW = ["national_illness", "us_births", "m4_yearly_sample"]
SETS = {one.name: one for one in BENCH}


@dataclass
class Counting:
    """Forecasts the last value, and counts the windows that it is asked for."""

    windows: int = 0
    name = "counting"
    context: int | None = 16
    marks: str | None = None
    dtype = torch.float32
    covariates = False

    def predict(self, batch: Batch, levels: tuple[float, ...]) -> Forecast:
        self.windows += len(batch)
        mean = batch.past[:, -1:].expand(-1, batch.horizon, -1)
        return Forecast(mean, mean[..., None].expand(*mean.shape, len(levels)), tuple(levels))


def test_every_bench_set_of_the_catalogue_is_in_the_suite_under_both_protocols(data_folder: Path) -> None:
    here = {name for name in catalog.names("bench") if catalog.local_file(catalog.get(name))}
    for profile in ("gift", "chronos"):
        assert {name for one in BENCH if profile in one.profiles for name in one.sources} == here


def test_the_parts_of_m3_are_those_of_the_competition(data_folder: Path) -> None:
    parts = [SETS[f"m3_{kind}"] for kind in ("yearly", "quarterly", "monthly", "other")]
    loaded = [part.load() for part in parts]
    assert [len(one) for one in loaded] == [645, 756, 1428, 174]
    assert [set(one.freqs) for one in loaded] == [{"YS"}, {"QS"}, {"MS"}, {"D"}]
    for profile in map(suite_profile, ("gift", "chronos")):
        horizons = [profile.horizon(one.name, one.freqs[0]) for one in loaded]
        assert horizons == [6, 8, 18, 8]
        lengths = [np.diff(one.offsets) for one in loaded]
        assert [profile.count(one.name, n, h) for one, n, h in zip(loaded, lengths, horizons, strict=True)] == [1] * 4


def test_the_summary_is_the_geometric_mean_over_sets_of_what_evaluate_gives(data_folder: Path) -> None:
    report = evaluate_suite(Naive(), sets=FEW)
    ratios = []
    for name in FEW:
        values = [evaluate(model, name, "gift").value("WQL") for model in (Naive(), SeasonalNaive())]
        assert all(values)
        ratios.append(values[0] / values[1])
    assert report.relative("WQL", "gift") == pytest.approx(np.exp(np.mean(np.log(ratios))), rel=1e-8)
    assert report.relative("MASE", "chronos", "seasonal-naive") == pytest.approx(1)
    assert {row["dataset"] for row in report.report.rows} == set(FEW)
    levels = [level for level, _ in coverage_points(report, "gift", "naive")]
    assert levels == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])


def test_when_two_protocols_share_the_windows_then_they_are_forecast_once(data_folder: Path) -> None:
    predictor = Counting()
    rows = score_set(predictor, SETS["m4_yearly_sample"])
    assert predictor.windows == 100
    gift, chronos = ([{**row, "profile": ""} for row in rows if row["profile"] == p] for p in ("gift", "chronos"))
    assert gift == chronos
    assert score_set(SeasonalNaive(), SETS["m4_yearly_sample"], file=Path("none"))[1]["value"] == pytest.approx(
        evaluate(SeasonalNaive(), "m4_yearly_sample", "gift").value("WQL"), rel=1e-12
    )


@pytest.mark.slow
def test_when_processes_share_the_work_then_the_report_stays(data_folder: Path) -> None:
    one, two = (evaluate_suite(SeasonalNaive(), sets=FEW, jobs=jobs) for jobs in (1, 2))
    assert one.to_json() == two.to_json()


def test_the_kept_baselines_are_what_is_computed(data_folder: Path) -> None:
    if not kept_baselines.FILE.is_file():
        pytest.skip("no kept scores beside the package")
    for name in ("us_births", "hospital"):
        for model in (SeasonalNaive(), Naive()):
            fresh = score_set(model, SETS[name], file=Path("none"))
            kept = score_set(model, SETS[name])
            for a, b in zip(fresh, kept, strict=True):
                assert a["value"] == pytest.approx(b["value"], rel=1e-8)
                assert {**a, "value": 0} == {**b, "value": 0}


def test_when_the_work_changes_then_kept_scores_are_not_used(data_folder: Path, tmp_path: Path) -> None:
    file, one, model = tmp_path / "kept.json", SETS["national_illness"], SeasonalNaive()
    kept_baselines.save_rows(model, one, score_set(model, one, file=file), file)
    gift = suite_profile("gift")
    kept = kept_baselines.load_rows(model, one, gift, file)
    assert kept is not None
    assert {row["metric"] for row in kept} == set(gift.metrics)
    assert kept_baselines.load_rows(model, one, replace(gift, levels=(0.5,)), file) is None
    assert kept_baselines.load_rows(model, replace(one, items=(0, 3)), gift, file) is None
    assert kept_baselines.load_rows(model, one, replace(gift, multiplier=2), file) is None
    assert kept_baselines.load_rows(SeasonalNaive(intervals=False), one, gift, file) is None
    assert kept_baselines.load_rows(Naive(), one, gift, file) is None


def test_when_a_metric_is_added_dropped_or_renamed_then_kept_scores_stay(data_folder: Path, tmp_path: Path) -> None:
    file, one, model = tmp_path / "kept.json", SETS["national_illness"], SeasonalNaive()
    kept_baselines.save_rows(model, one, score_set(model, one, file=file), file)
    gift = suite_profile("gift")
    before = {row["metric"]: row["value"] for row in kept_baselines.load_rows(model, one, gift, file) or []}
    metrics = {name: key for name, key in gift.metrics.items() if name != "MSIS"}
    metrics["absolute"] = metrics.pop("MAE")
    metrics["MSIS20"] = "MSIS[alpha=0.2]"
    after = {
        row["metric"]: row["value"]
        for row in kept_baselines.load_rows(model, one, replace(gift, metrics=metrics), file) or []
    }
    assert after.pop("absolute") == before.pop("MAE")
    before.pop("MSIS")
    assert after == before


def test_when_a_metric_is_new_then_quick_baselines_are_scored_again_and_a_line_says_what_others_lack(
    data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {**PROFILES["gift"].metrics, "MSIS20": "MSIS[alpha=0.2]"}
    monkeypatch.setitem(PROFILES, "gift", replace(PROFILES["gift"], metrics=more))
    report = evaluate_suite(Naive(), profiles=["gift"], sets=["us_births"], baselines=["auto-theta"])
    scored = {row["model"] for row in report.report.rows if row["metric"] == "MSIS20" and row["value"] is not None}
    assert scored == {"naive", "seasonal-naive"}
    assert report.report.value("MASE", model="auto-theta") is not None
    assert any("MSIS20" in note and "auto-theta" in note for note in report.report.notes)


def write_anchors(path: Path, values: dict[tuple[str, str], float]) -> Path:
    lines = ["dataset,freq,horizon,model,metric,value,source"]
    lines += [f"gift:us_births/D/short,D,30,{model},{metric},{value},here" for (model, metric), value in values.items()]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_when_seasonal_naive_is_reproduced_then_published_results_are_shown_else_not(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = {("Seasonal_Naive", "MASE"): 1.864839, ("Seasonal_Naive", "CRPS_mean_wQL"): 0.119527}
    other = {("Big_Model", "MASE"): 0.5 * 1.864839, ("Big_Model", "CRPS_mean_wQL"): 0.25 * 0.119527}
    monkeypatch.setenv("TSFM_ANCHORS", str(write_anchors(tmp_path / "a.csv", same | other)))
    report = evaluate_suite(Naive(), profiles=["gift"], sets=["us_births"])
    assert report.same_work["gift"]["sets"] == ["us_births"]
    means = report.same_work["gift"]["models"]
    assert means["big-model"]["MASE"] == pytest.approx(0.5, rel=1e-5)
    assert means["big-model"]["WQL"] == pytest.approx(0.25, rel=1e-4)
    shown = [row for row in json.loads(report.to_json())["rows"] if row["model"] == "big-model"]
    assert [(row["metric"], row["source"]) for row in shown] == [("MASE", "here"), ("WQL", "here")]
    write_anchors(tmp_path / "a.csv", same | other | {("Seasonal_Naive", "MASE"): 1.8655})
    refused = evaluate_suite(Naive(), profiles=["gift"], sets=["us_births"])
    assert refused.same_work == {}
    assert "seasonal naive has MASE 1.865500 there and 1.864839 here" in refused.notes[-1]


def test_when_the_published_table_is_absent_or_wrong_then_it_is_said(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published, "anchors_file", lambda: None)
    assert "No table of published results" in evaluate_suite(Naive(), sets=["us_births"]).notes[-1]
    monkeypatch.undo()
    monkeypatch.setenv("TSFM_DATA", str(data_folder))
    monkeypatch.setenv("TSFM_ANCHORS", str(tmp_path / "none.csv"))
    with pytest.raises(InputError, match="TSFM_ANCHORS: expected a table"):
        evaluate_suite(Naive(), sets=["us_births"])
    (tmp_path / "none.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="expected the columns dataset, freq"):
        evaluate_suite(Naive(), sets=["us_births"])
    write_anchors(tmp_path / "none.csv", {("seasonal_naive", "MASE"): "much"})  # type: ignore[dict-item]
    with pytest.raises(InputError, match=r"line 2: expected a number in column value, found 'much'"):
        evaluate_suite(Naive(), sets=["us_births"])


def test_when_an_error_is_zero_or_undefined_then_the_set_is_named_and_left_out() -> None:
    place = {"profile": "gift", "freq": "D", "horizon": 3, "season": 1, "windows": 1, "points": 3, "undefined": 0}
    rows = [
        {**place, "dataset": name, "model": model, "metric": metric, "value": value}
        for name, base, ours in (("good", 2.0, 1.0), ("exact", 0.0, 1.0), ("flat", None, None))
        for model, value in (("seasonal-naive", base), ("m", ours))
        for metric in ("MASE", "WQL")
    ]
    report = SuiteReport.build("m", "bench", [], Report(rows))
    assert report.relative("MASE", "gift") == pytest.approx(0.5)
    assert report.summary["gift"]["m"]["MASE"]["datasets"] == 1
    over = report.summary["gift"]["seasonal-naive"]["model_over_it"]
    assert over == {"MASE": pytest.approx(0.5), "WQL": pytest.approx(0.5), "datasets": 1}
    assert report.summary["gift"]["m"]["without_ratio"] == {"MASE": ["exact", "flat"], "WQL": ["exact", "flat"]}
    assert any("no MASE relative to seasonal naive on exact, flat" in note for note in report.notes)
    assert relative.geometric_mean([None, 0.0]) is None
    json.loads(report.to_json())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"suite": "bensch"}, "unknown suite 'bensch': did you mean bench"),
        ({"profiles": ["lsf"]}, "unknown profile of suite 'bench' 'lsf'"),
        ({"sets": ["ETTh3"]}, "unknown set of suite 'bench' 'ETTh3'"),
        ({"sets": ["nn5"], "profiles": ["gift-long"]}, "expected sets with profile gift-long, found none"),
        ({"baselines": ["arima"]}, "unknown baseline 'arima'"),
        ({"jobs": 0}, "expected jobs of at least 1, found 0"),
    ],
)
def test_when_the_options_are_wrong_then_one_line_says_so(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        evaluate_suite(Naive(), **options)
    assert "\n" not in str(error.value)


def test_when_no_set_is_at_hand_then_one_line_says_where_it_belongs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TSFM_DATA", str(tmp_path))
    with pytest.raises(InputError, match="found none of nn5: set TSFM_DATA=FOLDER"):
        evaluate_suite(Naive(), sets=["nn5"])
    assert len(choose("bench", ALL_PROFILES)) == len(BENCH) == 28


@pytest.mark.slow
def test_the_command_writes_a_page_a_table_and_json(
    data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report"
    words = ["evaluate", "--model", "naive", "--suite", "bench", "--profiles", "gift", "chronos", "--sets", *FEW]
    text = done(capsys, *words, "--output", str(out), "--json", str(tmp_path / "scores.json"))
    assert "relative MASE" in text
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "report.json", "report.md"]
    page = (out / "report.html").read_text()
    assert page.count("data:image/svg+xml") == 3
    assert "http" not in page.replace("http://www.w3.org", "")
    read = json.loads((tmp_path / "scores.json").read_text())
    assert {"rows", "summary", "same_work", "notes"} <= set(read)
    assert read == json.loads((out / "report.json").read_text())
    first = (out / "report.html").read_bytes()
    done(capsys, *words, "--output", str(out), "--overwrite")
    assert (out / "report.html").read_bytes() == first


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected either --data or --suite, found neither"),
        (["--data", "nn5", "--suite", "bench"], "expected either --data or --suite, found both"),
        (["--suite", "bench", "--horizon", "5"], "--horizon only with --data"),
        (["--data", "nn5", "--sets", "nn5"], "--sets only with --suite"),
        (["--suite", "bench", "--sets", "nn6"], "unknown set of suite 'bench' 'nn6'"),
    ],
)
def test_when_the_commands_options_are_wrong_then_one_line_says_so(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(capsys, "evaluate", "--model", "naive", *words)
    assert result.status == 2
    assert message in result.err
    assert result.err.count("\n") == 1


def test_the_command_keeps_the_scores_of_baselines_and_does_not_compute_them_twice(
    data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "kept.json"
    words = ["--models", "naive", "--sets", "us_births", "--output", str(file)]
    assert "naive" in script(capsys, baselines, *words).out
    first = file.read_bytes()
    cells = json.loads(first)
    assert list(cells) == ["us_births chronos naive", "us_births gift naive"]
    assert script(capsys, baselines, *words).status == 0
    assert file.read_bytes() == first
    assert script(capsys, baselines, "--models", "arima").status == 2


def test_a_set_of_several_sources_is_pooled(data_folder: Path) -> None:
    series = SETS["ETTh"].load()
    assert (series.name, len(series), series.variates) == ("ETTh", 14, ("target",))
    assert SuiteSet("x", ("nn5", "ECL")).missing() == ["ECL"]
