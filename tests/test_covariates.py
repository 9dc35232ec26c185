"""Covariates reach a model that looks at them, stay on their side of the present, and are never dropped in silence."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from command import run
from jaxtyping import Float
from torch import Tensor

from tsfm.inference.predictors import forecast_frame
from tsfm.models.base import Forecaster, fit_context, select
from tsfm.models.covariates import standardise_covariates, with_covariates
from tsfm.models.moirai import Moirai, MoiraiConfig
from tsfm.weights.pretrained import save
from tsfm_data.errors import InputError
from tsfm_data.io.series import SeriesSet
from tsfm_data.io.tables import read_series
from tsfm_data.windows.batch import Batch
from tsfm_data.windows.datamodule import ForecastDataModule
from tsfm_data.windows.loader import Windows

T, H = 8, 3
ROLES: dict[str, Any] = {"past_covariates": ["visitors"], "known_covariates": ["price", "holiday"]}


def table(rows: int = 30, ahead: int = H, items: tuple[str, ...] = ("a", "b")) -> pd.DataFrame:
    """A long table of two series that goes on for ``ahead`` rows with the known covariates alone."""
    parts = []
    for number, item in enumerate(items):
        rng = np.random.default_rng(number)
        total = rows + 5 * number + ahead
        part = pd.DataFrame({"item_id": item, "timestamp": pd.date_range("2024-01-01", periods=total, freq="D")})
        part["target"] = np.where(np.arange(total) < total - ahead, rng.normal(size=total), np.nan)
        part["visitors"] = np.where(np.arange(total) < total - ahead, rng.normal(size=total), np.nan)
        part["price"], part["holiday"] = rng.normal(size=total), (np.arange(total) % 7 == 0).astype(float)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def series(ahead: int = H) -> SeriesSet:
    return read_series(table(ahead=ahead), **ROLES)


def test_when_windows_are_asked_for_covariates_then_each_shows_its_own_rows() -> None:
    found = series()
    values, rows = {"past": found.past, "known": found.known}, np.diff(found.offsets)
    pairs = [(i, c) for i in range(2) for c in range(1, found.length(i) + 1)]
    items, cuts = map(list, zip(*pairs, strict=True))
    batch = Windows(found, T, H, items, cuts, covariates=True, dtype=torch.float64).batch(range(len(items)))
    blocks = {
        "past": (batch.past_covariates, batch.past_covariates_observed, -T, 0),
        "known": (batch.known_past, batch.known_past_observed, -T, 0),
        "future": (batch.known_future, batch.known_future_observed, 0, H),
    }
    for name, (block, seen, first, last) in blocks.items():
        assert block is not None
        assert seen is not None
        source = values["past" if name == "past" else "known"]
        for w, (item, cut) in enumerate(pairs):
            for step, row in enumerate(range(cut + first, cut + last)):
                if 0 <= row < rows[item]:
                    np.testing.assert_array_equal(block[w, step], source[found.offsets[item] + row])
                    assert seen[w, step].all()
                else:
                    assert not seen[w, step].any()
                    assert not block[w, step].any()


def test_when_a_predictor_does_not_ask_then_windows_hold_no_covariates() -> None:
    batch = Windows(series(), T, H, [0], [20]).batch([0])
    assert batch.past_covariates is None
    assert batch.known_past is None
    assert batch.known_future is None


def test_when_a_covariate_is_missing_in_the_past_then_it_is_marked_and_not_an_error() -> None:
    frame = table()
    frame.loc[18, "price"] = np.nan
    batch = Windows(read_series(frame, **ROLES), T, H, [0], [20], covariates=True).batch([0])
    assert batch.known_past_observed is not None
    assert batch.known_past_observed[0, :, 0].tolist() == [True] * 6 + [False, True]


def test_when_the_known_future_is_shorter_than_the_horizon_then_the_rows_needed_are_said() -> None:
    found = series(ahead=2)
    with pytest.raises(
        InputError,
        match=r"series 'a': expected 3 rows of the known covariates \(price, holiday\) "
        "after its last value, found 2: add 1 row, 2024-02-02 00:00:00, with an empty target, "
        "or give a horizon of at most 2",
    ):
        Windows(found, T, H, [0, 1], [30, 35], covariates=True)
    Windows(found, T, H, [0, 1], [30, 35])  # a predictor that does not look at them needs none


def test_when_only_the_future_has_a_series_then_it_is_named_as_one_without_values() -> None:
    frame = table()
    frame.loc[frame["item_id"] == "b", "target"] = np.nan
    with pytest.raises(InputError, match=r"series 'b': expected values of the target .*, found none: leave the series"):
        Windows(read_series(frame, **ROLES), T, H, [0, 1], [30, 38], covariates=True)


def test_when_a_known_covariate_is_missing_in_the_future_then_column_series_and_row_are_said() -> None:
    frame = table()
    frame.loc[len(frame) - 2, "holiday"] = np.nan
    with pytest.raises(
        InputError,
        match=r"column 'holiday', series 'b', row 2 after the end of the target "
        r"\(2024-02-06 00:00:00\)",
    ):
        Windows(read_series(frame, **ROLES), T, H, [0, 1], [30, 35], covariates=True)
    Windows(read_series(frame, **ROLES), T, 1, [0, 1], [30, 35], covariates=True)  # nothing is missing that soon


def make_batch(count: int = 4, horizon: int = H, seed: int = 0) -> Batch:
    """Two variates, one covariate of the past and two known ones."""
    g = torch.Generator().manual_seed(seed)

    def draw(steps: int, columns: int) -> Tensor:
        return torch.randn(count, steps, columns, generator=g, dtype=torch.float64)

    def all_of(x: Tensor) -> Tensor:
        return torch.ones_like(x, dtype=torch.bool)

    past, old, known, ahead = draw(T, 2), draw(T, 1), draw(T, 2), draw(horizon, 2)
    return Batch(
        past=past, past_observed=all_of(past), horizon=horizon,
        past_covariates=old, past_covariates_observed=all_of(old),
        known_past=known, known_past_observed=all_of(known),
        known_future=ahead, known_future_observed=all_of(ahead),
    )  # fmt: skip


def test_when_covariates_become_columns_then_only_the_known_ones_have_a_future() -> None:
    batch = make_batch()
    past, observed, future, future_observed = with_covariates(batch)
    assert batch.past_covariates is not None
    assert batch.known_past is not None
    assert batch.known_future is not None
    assert torch.equal(past, torch.cat([batch.past, batch.past_covariates, batch.known_past], dim=2))
    assert observed.all()
    assert torch.equal(future[..., 3:], batch.known_future)
    assert not future[..., :3].any()
    assert future_observed[0, 0].tolist() == [False, False, False, True, True]
    longer = with_covariates(batch, H + 2)
    assert longer.future_observed[:, H:].sum() == 0
    assert torch.equal(with_covariates(batch, 1).future, future[:, :1])
    bare = replace(batch, past_covariates=None, known_past=None, known_future=None)
    assert torch.equal(with_covariates(bare).past, batch.past)
    assert with_covariates(bare).future.shape == (4, H, 2)


def test_when_covariates_are_standardised_then_units_do_not_matter_and_nothing_unseen_counts() -> None:
    batch = make_batch()
    assert batch.known_past is not None
    assert batch.known_future is not None
    assert batch.known_future_observed is not None
    expected = standardise_covariates(batch)
    moved = replace(batch, known_past=5e6 * batch.known_past - 3e9, known_future=5e6 * batch.known_future - 3e9)
    found = standardise_covariates(moved)
    for name in ("known_past", "known_future", "past_covariates"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-6, rtol=0)
    whole = torch.cat([found.known_past, found.known_future], dim=1)  # type: ignore[list-item]
    torch.testing.assert_close(whole.mean(1), torch.zeros(4, 2).double(), atol=1e-6, rtol=0)
    constant = replace(batch, known_past=0 * batch.known_past + 0.1, known_future=0 * batch.known_future + 0.1)
    assert not standardise_covariates(constant).known_past.any()  # type: ignore[union-attr]


class Oracle(Forecaster):
    """Says the first known covariate of the next two steps: a rollout of it is the known future."""

    model_type = "oracle"

    def __init__(self) -> None:
        super().__init__(T, 2, None)
        self.levels = (0.1, 0.5, 0.9)
        self.weight = torch.nn.Parameter(torch.zeros(()))

    @property
    def covariates(self) -> bool:
        return True

    def standardise(self, batch: Batch) -> tuple:
        kept, scale = super().standardise(batch)
        return replace(kept, known_past=batch.known_past, known_future=batch.known_future), scale

    def forward(self, batch: Batch) -> Float[Tensor, "B S V K"]:
        future, seen = with_covariates(batch, self.horizon)[2:]
        assert seen[:, : min(2, batch.horizon), 3:].all()
        return future[:, :, 3:4, None].expand(-1, -1, 2, 3)

    def loss_of(self, output: Float[Tensor, "B S V K"], batch: Batch) -> Float[Tensor, ""]:
        return output.mean()


def test_when_a_forecast_is_rolled_out_then_the_known_future_moves_along() -> None:
    batch = make_batch(horizon=7)
    assert batch.known_future is not None
    standard, _ = Oracle().standardise(fit_context(batch, T))
    rolled = Oracle().rollout(standard)
    assert rolled.shape == (4, 7, 2, 3)
    torch.testing.assert_close(rolled[..., 0, 1].double(), batch.known_future[..., 0])


@pytest.mark.parametrize("context", [T - 3, T + 4])
def test_when_the_context_is_fitted_then_covariates_keep_in_step_with_the_history(context: int) -> None:
    fitted = fit_context(make_batch(), context)
    for name in ("past_covariates", "past_covariates_observed", "known_past", "known_past_observed"):
        assert getattr(fitted, name).shape[1] == context
    assert fitted.known_past_observed is not None
    assert torch.equal(fitted.known_past_observed[..., 0], fitted.past_observed[..., 0])


STEPS, CONTEXT, HORIZON = 70, 16, 8


def planted(count: int, g: torch.Generator, role: str) -> Batch:
    """Noise that its covariate says: ``y = x`` of the same step (known), or of a horizon ago (past)."""
    lead = 0 if role == "known" else HORIZON
    x = torch.randn(count, CONTEXT + HORIZON + lead, 1, generator=g)
    y, x = x[:, : CONTEXT + HORIZON], x[:, lead:]

    def all_of(x: Tensor) -> Tensor:
        return torch.ones_like(x, dtype=torch.bool)

    past, future = y[:, :CONTEXT], y[:, CONTEXT:]
    batch = Batch(past=past, past_observed=all_of(past), horizon=HORIZON, future=future, future_observed=all_of(future))
    before, ahead = x[:, :CONTEXT], x[:, CONTEXT:]
    if role == "past":
        return replace(batch, past_covariates=before, past_covariates_observed=all_of(before))
    return replace(
        batch,
        known_past=before,
        known_past_observed=all_of(before),
        known_future=ahead,
        known_future_observed=all_of(ahead),
    )


@pytest.mark.slow
@pytest.mark.parametrize("role", ["known", "past"])
def test_when_the_series_is_its_covariate_then_that_is_learnt(role: str) -> None:
    torch.manual_seed(0)
    model = Moirai(CONTEXT, HORIZON, MoiraiConfig(32, 1, 2, (4, 8), 4, (0.1, 0.5, 0.9)))
    optimizer, g = torch.optim.Adam(model.parameters(), lr=1e-2), torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        loss = model.loss(planted(64, g, role))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    test = planted(128, torch.Generator().manual_seed(9), role)
    assert test.future is not None
    error = (model.predict(test, (0.5,)).mean - test.future).abs().mean().item()
    assert error < 0.5  # 0.8 is what one can do without
    bare = replace(test, past_covariates=None, known_past=None, known_future=None)
    assert (model.predict(bare, (0.5,)).mean - test.future).abs().mean().item() > 0.7


def small(patch: object = 4) -> Moirai:
    torch.manual_seed(0)
    return Moirai(T, 4, MoiraiConfig(16, 1, 2, (2, 4), patch, (0.1, 0.5, 0.9))).eval()  # type: ignore[arg-type]


def test_when_the_patch_size_is_chosen_then_every_window_gets_its_own_whatever_its_company() -> None:
    model, batch = small("auto"), make_batch(12, horizon=9)
    chosen = {size: rows.tolist() for size, rows in model.by_patch_size(model.standardise(batch)[0])}
    assert sorted(row for rows in chosen.values() for row in rows) == list(range(12))
    assert set(chosen) == {2, 4}  # both kinds are there
    together = model.predict(batch, (0.1, 0.5)).quantiles
    for size, rows in chosen.items():
        fixed = small(size)
        for row in rows[:2]:
            alone = select(batch, torch.tensor([row]))
            expected = together[row : row + 1]
            torch.testing.assert_close(model.predict(alone, (0.1, 0.5)).quantiles, expected, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(fixed.predict(alone, (0.1, 0.5)).quantiles, expected, atol=1e-5, rtol=1e-5)


def test_when_a_table_has_known_covariates_then_the_forecast_follows_them() -> None:
    model, found = small(), series(ahead=5)
    first = forecast_frame(model, found, 5, (0.5,))
    changed = found.known.copy()
    changed[-1] += 5
    second = forecast_frame(model, replace(found, known=changed), 5, (0.5,))
    assert first["mean"][:5].equals(second["mean"][:5])  # series a
    assert (first["mean"][5:] != second["mean"][5:]).any()


def test_when_a_model_takes_no_covariates_then_the_command_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "sales.csv"
    table().to_csv(file, index=False)
    words = (
        "forecast",
        str(file),
        "--horizon",
        "3",
        "--past-covariates",
        "visitors",
        "--known-covariates",
        "price",
        "--model",
        "seasonal-naive",
    )
    said = run(capsys, *words)
    assert said.status == 0
    warning, note = said.err.splitlines()
    assert note == "note: columns not used as target or covariate: holiday"
    assert warning == "warning: model seasonal-naive takes no covariates: visitors, price ignored"
    assert said.out.splitlines()[1].startswith("a,2024-01-31")  # after the last target, not after the last row
    save(small(), tmp_path / "model")
    said = run(capsys, *words, "--model", str(tmp_path / "model"))
    assert (said.status, said.err) == (0, "note: columns not used as target or covariate: holiday\n")
    said = run(capsys, *words[:3], "4", *words[4:], "--model", str(tmp_path / "model"))
    assert said.status == 2
    assert "expected 4 rows of the known covariates (price) after its last value, found 3" in said.err
    assert said.err.count("\n") == 1


def test_when_a_model_is_scored_with_covariates_then_it_is_scored_without_them_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "sales.csv"
    table(ahead=0).to_csv(file, index=False)
    save(small(), tmp_path / "tiny")
    words = ("evaluate", "--data", str(file), "--horizon", "3", "--known-covariates", "price", "--model")
    said = run(capsys, *words, str(tmp_path / "tiny"), "--json", str(tmp_path / "scores.json"))
    assert (said.status, said.err) == (0, "note: columns not used as target or covariate: visitors, holiday\n")
    rows = json.loads((tmp_path / "scores.json").read_text())["rows"]
    scores = {row["model"]: row["value"] for row in rows if row["metric"] == "MASE"}
    assert scores.keys() == {"tiny", "tiny without covariates", "naive", "seasonal-naive"}
    assert scores["tiny"] != scores["tiny without covariates"]
    said = run(capsys, *words, "naive")
    assert said.err.splitlines()[0] == "warning: model naive takes no covariates: price ignored"


def test_when_the_data_module_names_covariates_then_its_windows_hold_them_standardised(tmp_path: Path) -> None:
    file = tmp_path / "sales.csv"
    frame = table(rows=80, ahead=H)
    frame["price"] = 1e6 + 1e3 * frame["price"]
    frame.to_csv(file, index=False)
    module = ForecastDataModule(str(file), T, H, batch_size=8, marks=None, target="target", **ROLES)
    module.setup()
    for batch in (next(iter(module.train_dataloader())), next(iter(module.predict_dataloader()))):
        assert batch.known_past is not None
        assert batch.known_future is not None
        assert batch.known_future_observed is not None
        assert batch.past_covariates is not None
        assert batch.known_past[..., 0].abs().max() < 5
        assert batch.known_future_observed.all()
        assert batch.known_future.shape[1:] == (H, 2)
