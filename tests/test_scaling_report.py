"""The report of a scaling fit: groups, bands, metrics, published laws, and the runs that should be made next."""

import re
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_hex

from tsfm.reports.html import Image, Section, Table, page
from tsfm.scaling.analysis import analyse
from tsfm.scaling.figures.trust import draw_all, draws_figure
from tsfm.scaling.laws.design import best_runs, candidates, next_runs
from tsfm.scaling.laws.estimate import Fit, fit_joint, optimal_plans
from tsfm.scaling.laws.form import NAMES, JointLaw, training_flops
from tsfm.scaling.laws.metrics import metric_laws
from tsfm.scaling.laws.single import power_law, saturating_law
from tsfm.scaling.parts import why_intervals_differ
from tsfm.scaling.report import build_page
from tsfm.scaling.runs.ledger import Runs
from tsfm.scaling.selftest import PLANTED, planted_runs

PLANNED = 1e22  # FLOPs


def size(fit: Fit) -> tuple[float, float]:
    """Logarithm of the best size for a budget, and the width of its interval."""
    ends = fit.intervals(lambda laws: optimal_plans(laws, np.array([PLANNED]))[:, :1])
    return float(ends[:, 0].mean()), float(np.ptp(ends))


def with_run(runs: Runs, params: float, tokens: float, error: float) -> Runs:
    """The runs with one more, of the planted law and an error of log loss."""
    loss = float(JointLaw(*PLANTED).loss(params, tokens)) * np.exp(error)
    flops = float(training_flops(params, tokens))
    columns = {"params": params, "tokens": tokens, "loss": loss, "flops": flops, "clusters": runs.runs}
    return replace(runs, **{name: np.append(getattr(runs, name), value) for name, value in columns.items()})


@pytest.mark.slow
def test_the_run_that_is_proposed_narrows_the_planned_size_more_than_one_at_random() -> None:
    chosen, drawn = [], []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        runs = planted_runs("unbalanced", 40, 0.005, seed)
        fit = fit_joint(runs, 0, 0)
        budget = float(runs.flops.max())

        def plan(theta: np.ndarray, fit: Fit = fit) -> np.ndarray:
            return optimal_plans(fit.problem.to_laws(theta), np.array([PLANNED]))[:, :1]

        possible = candidates(runs.params, runs.tokens)
        proposed = best_runs(fit.problem, fit.profile, plan, possible, budget)
        assert sum(row["flops"] for row in proposed) <= budget
        paid = np.flatnonzero(np.asarray(training_flops(*possible)) <= budget)
        now = size(fit)[1]
        for error in 0.005 * rng.normal(size=3):
            best = with_run(runs, proposed[0]["params"], proposed[0]["tokens"], error)
            chosen.append(size(fit_joint(best, 0, 0))[1] / now)
            k = rng.choice(paid)
            other = with_run(runs, float(possible[0][k]), float(possible[1][k]), error)
            drawn.append(size(fit_joint(other, 0, 0))[1] / now)
    assert np.mean(chosen) < 0.9 * np.mean(drawn)
    assert np.mean(chosen) < 0.9


def test_widths_that_are_expected_fall_and_their_first_is_that_of_the_information() -> None:
    fit = fit_joint(planted_runs("unbalanced", 40, 0.005, 0), 0, 0)
    record = next_runs(fit)
    widths = [row["width"] for row in record["runs"]]
    assert widths == sorted(widths, reverse=True)
    assert 0 < widths[-1] < widths[0] < 1
    assert sum(row["flops"] for row in record["runs"]) <= record["budget"]


def test_bands_hold_the_law_and_new_runs() -> None:
    fit = fit_joint(planted_runs("grid", 64, 0.01, 3), 0, 0)
    new = planted_runs("isoflop", 60, 0.01, 4)
    loss, ends, wide = fit.bands(new.params, new.tokens)
    assert ((wide[0] < ends[0]) & (ends[0] < loss) & (loss < ends[1]) & (ends[1] < wide[1])).all()
    true = np.asarray(JointLaw(*PLANTED).loss(new.params, new.tokens))
    assert ((ends[0] < true) & (true < ends[1])).mean() > 0.8
    assert 0.87 < ((wide[0] < new.loss) & (new.loss < wide[1])).mean() <= 1


@pytest.mark.parametrize("form", [power_law, saturating_law])
def test_bands_of_a_law_in_one_variable_hold_new_points(form: type) -> None:
    x = np.geomspace(1e3, 1e9, 40)
    rng = np.random.default_rng(0)
    floor = 2.0 if form is saturating_law else 0.0

    def noisy() -> np.ndarray:
        return (floor + (1e5 / x) ** 0.2) * np.exp(0.01 * rng.normal(size=len(x)))

    inside = []
    for _ in range(6):
        law = form(x, noisy())
        ends, wide = law.bands(x)
        assert (ends[0] < law.loss(x)).all()
        assert (law.loss(x) < ends[1]).all()
        inside += [((wide[0] < y) & (y < wide[1])).mean() for y in (noisy() for _ in range(20))]
    assert 0.92 < np.mean(inside) < 0.98


def test_law_of_a_metric_is_that_of_its_values_and_missing_ones_are_left_out() -> None:
    runs = planted_runs("grid", 49, 0.003, 0)
    wql = np.asarray(JointLaw(0.4, 100.0, 300.0, 0.3, 0.32).loss(runs.params, runs.tokens))
    few = np.where(np.arange(49) < 5, wql, np.nan)
    rows = metric_laws(replace(runs, metrics={"val WQL": wql, "few MASE": few, "same loss": runs.loss}), 1e-3)
    assert [row["metric"] for row in rows] == ["val WQL", "few MASE"]
    assert rows[0]["law"]["alpha"] == pytest.approx(0.3, rel=0.02)
    assert set(rows[0]["exponents"]) == {"params", "tokens", "flops"}
    assert "law" not in rows[1]
    assert "5 runs" in rows[1]["not_identifiable"][0]


def test_intervals_that_differ_are_named_with_what_differs() -> None:
    fit = fit_joint(planted_runs("grid", 9, 0.01, 1), 300, 0)
    drawn = {name: [0.9, 1.0] for name in ("E", "alpha")}
    notes = why_intervals_differ(fit, {"E": (0.0, 2.0), "alpha": (0.9, 1.0)}, drawn)
    assert notes[0].startswith("E: 0 to 2 by the profile; by the bootstrap 0.05 times as wide")
    assert not any(note.startswith("alpha") for note in notes)
    assert any("leaves out about 3 of the 9 trainings" in note for note in notes)
    assert why_intervals_differ(fit, {"alpha": (0.9, 1.0)}, drawn) == []


@pytest.mark.slow
def test_groups_have_their_own_colours_laws_and_figures_in_a_small_report() -> None:
    parts = []
    for k in range(2):
        runs = planted_runs("grid", 25, 0.003, k)
        parts.append(replace(runs, loss=runs.loss * (1 + 0.2 * k)))
    columns = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in ("params", "tokens", "loss", "flops")
    }
    labels = ("first",) * 25 + ("second",) * 25
    runs = replace(parts[0], **columns, clusters=np.arange(50), groups=labels, metrics={"MASE": columns["loss"] / 3})
    grouped = analyse(runs, draws=100)
    assert grouped.record["joint"]["identifiable"] is False
    assert (grouped.record["single"], grouped.record["metrics"]) == ([], [])
    figures = draw_all(grouped)
    colors = {to_hex(points.get_facecolor()[0][:3]) for points in figures["loss"][0].axes[0].collections}
    assert {"#0072b2", "#d55e00"} <= colors
    assert len(figures["surface"][0].axes) == 2
    html = build_page(grouped.record, {name: Image(figure, alt) for name, (figure, alt, _) in figures.items()})
    for words in (
        "first: ",
        "second: ",
        "Next best runs",
        "Other metrics",
        "MASE",
        "time series: Yao et al. 2025, encoder, LSF",
        "language: Hoffmann et al. 2022",
        "this fit, second",
    ):
        assert words in html, words
    assert len(html) < 550_000


def test_when_no_draw_has_a_floor_then_its_axis_is_drawn_without_a_warning() -> None:
    analysis = analyse(planted_runs("grid", 25, 0.003, 0), draws=100)
    fit = analysis.whole.fit
    assert fit is not None
    draws = fit.draws.copy()
    draws[:, NAMES.index("E")] = 0.0
    figure = draws_figure(replace(analysis, whole=replace(analysis.whole, fit=replace(fit, draws=draws))))
    assert figure is not None
    assert figure.axes[2].get_xlim()[0] == 0.0


def test_tables_scroll_in_their_box_and_captions_do_not() -> None:
    html = page("t", [Section("s", [Table([{"a": 1}], "caption"), Table([{"b": 2}])])])
    assert len(re.findall(r'<div class="wide">\s*<table>', html)) == html.count("<table>") == 2
    assert re.search(r"</table></div>\s*<figcaption>caption", html)
