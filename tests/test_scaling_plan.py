"""Plans: what they cost to find, and the runs that would make them surer."""

import numpy as np
import pytest

from tsfm.scaling.laws.estimate import constant_intervals, fit_joint
from tsfm.scaling.laws.form import JointLaw
from tsfm.scaling.laws.minimise import slopes
from tsfm.scaling.parts import data_record, joint_record, runs_record
from tsfm.scaling.plan import FittedLaw, Goal, make_plan
from tsfm.scaling.runs.ledger import Runs
from tsfm.scaling.selftest import planted_runs


def fitted(runs: Runs, weigh: bool = False) -> FittedLaw:
    """The law of runs as a plan reads it."""
    fit = fit_joint(runs, 0, 0, weigh=weigh)
    joint = joint_record(fit, constant_intervals(fit))
    record = {"data": data_record(runs, runs), "runs": runs_record(runs), "joint": joint, "repetition": None}
    return FittedLaw(record | {"warnings": []})


@pytest.fixture(scope="module")
def law() -> FittedLaw:
    return fitted(planted_runs("isoflop", 60, 0.003, seed=2))


def test_gradients_of_all_quantities_take_one_call() -> None:
    calls = []

    def quantities(theta: np.ndarray) -> np.ndarray:
        calls.append(len(theta))
        return np.stack([theta[:, 0] * theta[:, 1], theta[:, 1] ** 2], axis=1)

    found = slopes(quantities, np.array([[1.0, 2.0], [3.0, -1.0]]))
    assert calls == [8]
    np.testing.assert_allclose(found, [[[2, 1], [0, 4]], [[-1, 3], [0, -2]]], atol=1e-9)


def test_plan_with_inference_is_found_in_few_evaluations_of_the_law(
    law: FittedLaw, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, loss = [0], Goal.loss

    def counted(self: Goal, of: JointLaw, params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        calls[0] += 1
        return loss(self, of, params, tokens)

    monkeypatch.setattr(Goal, "loss", counted)
    make_plan(law, flops=1e21, inference_tokens=1e11)
    assert calls[0] < 10_000  # gradients one by one and searches step by step needed 450,000


def test_plan_names_the_runs_that_would_narrow_what_it_does_not_know(law: FittedLaw) -> None:
    for known, narrowed in (
        ({"flops": 1e22}, "params"),
        ({"params": 1e9}, "tokens"),
        ({"params": 1e9, "tokens": 1e11}, "loss"),
    ):
        plan = make_plan(law, **known)
        widths = [run["width"] for run in plan.next_runs]
        assert plan.narrowed == narrowed
        assert widths == sorted(widths, reverse=True)
        assert 0 < widths[-1] < 1
        spent = np.multiply(law.record["runs"]["params"], law.record["runs"]["tokens"]).sum() * 6
        assert sum(run["flops"] for run in plan.next_runs) <= spent


def test_prediction_of_a_run_is_as_wide_as_the_noise_of_its_compute() -> None:
    law = fitted(planted_runs("grid", 64, 0.005, 0, "growing"), weigh=True)
    power = law.record["joint"]["noise_exponent"]
    assert power == pytest.approx(0.15, abs=0.08)
    widths = []
    for params, tokens in ((2e7, 6e8), (5e9, 1.5e11)):
        loss, (low, high) = law.prediction(params, tokens)
        assert low < loss < high
        widths.append(np.log(high / low))
    assert widths[1] > 2 * widths[0]
