"""Scaling laws of losses that are odd: below zero, with a known floor, badly trained, or with unequal noise."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tsfm.scaling.analysis import analyse
from tsfm.scaling.laws.choice import compare_laws
from tsfm.scaling.laws.estimate import constant_intervals, constants, fit_joint
from tsfm.scaling.laws.form import NAMES, JointLaw
from tsfm.scaling.laws.joint import JointProblem, joint_problem
from tsfm.scaling.laws.metrics import metric_laws
from tsfm.scaling.laws.profile import Profile, _follow, follow_noises
from tsfm.scaling.laws.repetition import Repetition, repetition
from tsfm.scaling.laws.scatter import noise_exponent
from tsfm.scaling.laws.search import Search
from tsfm.scaling.laws.single import held_out_errors, saturating_law
from tsfm.scaling.plan import make_plan, read_fit
from tsfm.scaling.runs.ledger import Runs
from tsfm.scaling.selftest import PLANTED, planted_runs
from tsfm_data.errors import InputError


def below_zero(noise: float, seed: int) -> Runs:
    """Runs of the planted law with a negative floor and noise on the loss."""
    base = planted_runs("grid", 64, 0.0, 0)
    law = JointLaw(-1.2, *PLANTED[1:])
    error = noise * np.random.default_rng(seed).normal(size=len(base))
    return replace(base, loss=np.asarray(law.loss(base.params, base.tokens)) + error)


def test_law_of_losses_below_zero_is_found_by_the_losses_themselves() -> None:
    fit = fit_joint(below_zero(0.0, 0), 0, 0)
    np.testing.assert_allclose(fit.law, [-1.2, *PLANTED[1:]], rtol=1e-4)
    noisy = below_zero(0.01, 1)
    fit = fit_joint(noisy, 50, 0)
    assert fit.converged
    assert fit.unconverged <= 1
    for name, true in zip(NAMES, (-1.2, *PLANTED[1:]), strict=True):
        low, high = constant_intervals(fit)[name]
        assert low < true < high, name
    assert fit.problem.step * fit.profile.noise == pytest.approx(0.01, rel=0.3)
    loss, ends, wide = fit.bands(noisy.params, noisy.tokens)
    assert ((wide[0] < ends[0]) & (ends[0] < loss) & (loss < ends[1]) & (ends[1] < wide[1])).all()
    assert ((wide[0] < noisy.loss) & (noisy.loss < wide[1])).mean() > 0.85


def test_plan_of_losses_below_zero_reaches_one(tmp_path: Path) -> None:
    record = analyse(below_zero(0.01, 1), draws=100).record
    assert record["joint"]["measured"] == "loss"
    assert {row["law"] for row in record["laws"]}.isdisjoint({"Kaplan", "no floor", "linear"})
    assert record["optimal"][-1]["loss"] < -1
    rows = {row["variable"]: row for row in record["single"]}
    assert set(rows) == {"params", "tokens", "flops"}
    assert all("power" not in row and row["preferred"] == "saturating" for row in rows.values())
    low, high = rows["flops"]["saturating"]["E_ci95"]
    assert low < -1.2 < high < -1
    (tmp_path / "fit.json").write_text(json.dumps(record, allow_nan=False))
    law = read_fit(tmp_path / "fit.json")
    plan = make_plan(law, loss=-0.9)
    low, high = plan.intervals["params"]
    assert low < plan.values["params"] < high
    assert make_plan(law, flops=plan.values["flops"]).values["loss"] == pytest.approx(-0.9)
    loss, (low, high) = law.prediction(plan.values["params"], plan.values["tokens"])
    assert low < -0.91 < loss < -0.89 < high
    with pytest.raises(InputError, match="irreducible loss"):
        make_plan(law, loss=-1.5)


def test_law_in_one_variable_of_losses_below_zero_has_its_floor_and_holds_new_points() -> None:
    x, rng = np.geomspace(1e3, 1e9, 40), np.random.default_rng(0)
    true = -1.2 + (1e5 / x) ** 0.2
    exact = saturating_law(x, true)
    assert (exact.E, exact.exponent) == (pytest.approx(-1.2, rel=1e-4), pytest.approx(0.2, rel=1e-3))
    of_law, of_points = [], []
    for _ in range(8):
        noisy = saturating_law(x, true + 0.02 * rng.normal(size=40))
        assert noisy.error == pytest.approx(0.02, rel=0.4)
        ends, wide = noisy.bands(x)
        new = true + 0.02 * rng.normal(size=(20, 40))
        of_law.append(((ends[0] < true) & (true < ends[1])).mean())
        of_points.append(((wide[0] < new) & (new < wide[1])).mean())
    assert noisy.E_ci is not None
    assert noisy.E_ci[0] < -1.2 < noisy.E_ci[1] < -0.9
    assert np.mean(of_law) > 0.8
    assert 0.92 < np.mean(of_points) < 0.98
    assert held_out_errors(x, true) == {"saturating": pytest.approx(0, abs=1e-4)}


def test_worth_of_repeated_data_is_found_where_losses_are_below_zero() -> None:
    base = below_zero(0.0, 0)
    unique = base.tokens / np.random.default_rng(1).permutation(np.tile([1.0, 2, 4, 10, 20, 40, 80, 160], 8))
    law = JointLaw(-1.2, *PLANTED[1:])
    seen = Repetition(unique, 15.0, float("inf")).effective(law, base.params, base.tokens)
    loss = np.asarray(law.loss(*seen)) + 0.003 * np.random.default_rng(2).normal(size=64)
    found = repetition(fit_joint(replace(base, loss=loss, unique=unique), 0, 0))
    assert found is not None
    assert found["preferred"]
    assert found["ci95"][0] < 15 < found["ci95"][1]
    assert found["R_star"] == pytest.approx(15, rel=0.2)
    assert found["law"]["E"] == pytest.approx(-1.2, abs=0.1)


def test_law_of_a_metric_below_zero_counts_all_of_its_values() -> None:
    below = below_zero(0.01, 1)
    runs = replace(planted_runs("grid", 64, 0.003, 0), metrics={"val NLL": below.loss})
    (row,) = metric_laws(runs, 1e-3)
    assert row["runs"] == 64
    low, high = row["ci95"]["E"]
    assert low < -1.2 < high
    assert row["exponents"] == {}


@pytest.mark.parametrize("trend", [(), (0.1, 0.2)])
@pytest.mark.parametrize("log", [True, False])
def test_newton_step_has_the_true_gradient_and_hessian(log: bool, trend: tuple[float, ...]) -> None:
    runs = planted_runs("grid", 16, 0.1, 0) if log else below_zero(0.1, 0)
    joint = joint_problem(runs.params, runs.tokens, runs.loss, delta=0.05)
    problem, theta = replace(joint.problem, trend=trend), joint.starts(1)
    weight, delta = np.ones((1, len(runs))), np.full((1, 1), 0.05)

    def gradient(at: np.ndarray) -> np.ndarray:
        return problem.derivatives(*problem.parts(at), weight, delta)[0][0]

    def objective(at: np.ndarray) -> float:
        return float(problem.objective(problem.parts(at)[1], weight)[0])

    steps = 1e-6 * np.eye(5)
    slopes = [(objective(theta + step) - objective(theta - step)) / 2e-6 for step in steps]
    np.testing.assert_allclose(gradient(theta), slopes, rtol=1e-4, atol=1e-7)
    curves = [(gradient(theta + step) - gradient(theta - step)) / 2e-6 for step in steps]
    hessian = problem.derivatives(*problem.parts(theta), weight, delta)[1][0]
    np.testing.assert_allclose(hessian, curves, rtol=1e-3, atol=1e-5)


def test_known_floor_narrows_the_exponents_and_is_compared_with_a_free_one() -> None:
    runs = planted_runs("grid", 36, 0.005, seed=1)
    free, known = fit_joint(runs, 0, 0), fit_joint(runs, 0, 0, floor=1.8)
    ends, narrow = constant_intervals(free), constant_intervals(known)
    assert narrow["E"] == pytest.approx((1.8, 1.8))
    assert known.profile.freedom == free.profile.freedom + 1
    for k, name in ((3, "alpha"), (4, "beta")):
        assert narrow[name][0] < PLANTED[k] < narrow[name][1]
        assert np.ptp(narrow[name]) < 0.8 * np.ptp(ends[name])
    rows = {row["law"]: row for row in compare_laws(known)}
    assert (rows["joint"]["constants"], rows["free floor"]["constants"]) == (4, 5)
    assert rows["joint"]["preferred"]
    wrong = {row["law"]: row for row in compare_laws(fit_joint(runs, 0, 0, floor=0.5))}
    assert wrong["free floor"]["cross_validation"] < 0.7 * wrong["joint"]["cross_validation"]
    with pytest.raises(InputError, match="expected a floor from 0 to below the largest loss"):
        analyse(runs, draws=100, floor=-1.0)


def test_asymmetric_law_is_preferred_where_a_third_of_the_runs_are_badly_trained() -> None:
    base = planted_runs("grid", 64, 0.002, seed=1)
    rng = np.random.default_rng(0)
    bad = base.loss * np.where(rng.random(64) < 0.45, np.exp(0.05 * rng.random(64)), 1.0)
    rows = {row["law"]: row for row in compare_laws(fit_joint(replace(base, loss=bad), 0, 0))}
    budget = rows["joint"]["plan"]["flops"]
    law = JointLaw(*PLANTED)
    true = float(law.loss(law.optimal_params(budget), budget / 6 / law.optimal_params(budget)))
    assert abs(rows["asymmetric"]["plan"]["loss"] - true) < abs(rows["joint"]["plan"]["loss"] - true)
    assert set(rows) >= {"linear", "joint", "coupled"}


def share_inside(profiles: list[Profile], joint: JointProblem) -> np.ndarray:
    """Share of simulated tables in which the interval of each constant contains the planted one."""

    def quantities(theta: np.ndarray) -> np.ndarray:
        return constants(joint.to_laws(theta))

    truth = quantities(joint.to_theta(PLANTED[None]))[0]
    search = Search.join([profile.search(quantities) for profile in profiles])
    return search.contain(truth[search.which]).reshape(len(profiles), -1).mean(axis=0)


def test_near_copies_count_as_one_run_and_intervals_hold_the_law() -> None:
    repeats, half = 60, planted_runs("grid", 25, 0.0, 0)
    params, tokens, loss = (np.tile(part, 2) for part in (half.params, half.tokens, half.loss))
    joint = joint_problem(params, tokens, loss)
    rng = np.random.default_rng(0)
    shared = 0.005 * np.tile(rng.normal(size=(repeats, 25)), 2)
    losses = np.log(loss) - joint.unit + shared + 0.0005 * rng.normal(size=(repeats, 50))
    starts = np.concatenate([joint.to_theta(PLANTED[None]), joint.starts(6)])
    profiles = follow_noises(joint.problem, starts, losses, np.arange(50))
    assert all(profile.freedom == 20 for profile in profiles)
    alone = [replace(profile, clusters=np.arange(50)) for profile in profiles]
    assert share_inside(profiles, joint).min() >= 0.85
    assert share_inside(profiles, joint).mean() > share_inside(alone, joint).mean() + 0.07


def test_noise_that_grows_with_compute_is_fitted_and_weighs_the_runs() -> None:
    base = planted_runs("grid", 49, 0.0, 0)
    depth = np.log(base.flops / base.flops.min())
    errors = []
    for seed in range(3):
        noise = 0.002 * np.exp(0.18 * depth) * np.random.default_rng(seed).normal(size=49)
        fit = fit_joint(replace(base, loss=base.loss * np.exp(noise)), 0, 0, weigh=True)
        trend = fit.profile.problem.trend
        assert trend == (pytest.approx(0.18, abs=0.12),) * 2
        plain = joint_problem(base.params, base.tokens, base.loss * np.exp(noise))
        starts = np.concatenate([fit.problem.to_theta(fit.law[None]), plain.starts()])
        (unweighted,) = _follow(plain.problem, starts, plain.problem.measured[None], np.arange(49))
        laws = [plain.to_laws(each.theta[None])[0] for each in (fit.profile, unweighted)]
        errors.append([abs(np.log(law[[0, 3, 4]] / PLANTED[[0, 3, 4]])) for law in laws])
        _, _, wide = fit.bands(base.params, base.tokens)
        width = np.log(wide[1] / wide[0])
        assert width[np.argmax(base.flops)] > 3 * width[np.argmin(base.flops)]
    weighted, without = np.array(errors).mean(axis=(0, 2))
    assert weighted < 0.95 * without
    assert fit_joint(
        replace(base, loss=base.loss * np.exp(noise)), 0, 0
    ).profile.uneven  # noisy, and not asked to weigh
    assert fit_joint(planted_runs("grid", 49, 0.005, 0), 0, 0, weigh=True).profile.problem.trend == ()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_exponent_of_the_noise_is_found_and_an_outlier_hardly_moves_it(sign: float) -> None:
    values, rng = np.linspace(0, 12, 400), np.random.default_rng(0)
    residual = np.exp(sign * 0.2 * values) * rng.normal(size=400)
    assert noise_exponent(values, residual) == pytest.approx(sign * 0.2, abs=0.03)
    residual[-1] = 1e6
    assert noise_exponent(values, residual) == pytest.approx(sign * 0.2, abs=0.05)
