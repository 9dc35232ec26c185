"""Chronos-2 equals chronos-forecasting: every golden case found is a test."""

import json
from pathlib import Path

import pytest
import torch
from conftest import golden_cases
from golden_series import close, close_by_series, columns_of
from safetensors.torch import load_file

from tsfm.models.chronos2 import Chronos2, from_reference
from tsfm.nn.quantiles import weighted_quantiles
from tsfm_data.errors import InputError
from tsfm_data.windows.batch import Batch

CASES = golden_cases("timeseries/chronos_2")


@pytest.fixture(params=CASES, ids=lambda path: path.stem)
def case(request: pytest.FixtureRequest) -> tuple[dict, dict[str, torch.Tensor], Chronos2]:
    info = json.loads(request.param.read_text())
    tensors = load_file(Path(request.param).with_suffix(".safetensors"))
    weights = {key.removeprefix("weights/"): value for key, value in tensors.items() if key.startswith("weights/")}
    return info, tensors, from_reference(info["hf_config"], weights).eval()


def groups_of(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """The series of the case's raw pass [B, W, T]: each its own group, or two tasks of three variates."""
    if "in/context" in tensors:
        return tensors["in/context"][:, None]
    long, short = tensors["in/context_a"], tensors["in/context_b"]
    padded = torch.nn.functional.pad(short, (long.shape[1] - short.shape[1], 0), value=torch.nan)
    return torch.stack([long, padded])


@torch.inference_mode()
def test_golden_case_when_one_pass_is_made_then_tokens_scale_and_quantiles_agree(case: tuple) -> None:
    info, tensors, model = case
    series, ids = groups_of(tensors).flatten(0, 1), tensors["out/raw_group_ids"]
    for group in ids.unique():
        rows = torch.nonzero(ids == group).flatten()
        columns = columns_of(series[rows][None], 32)
        found, seen, scale = model.tokens(columns)
        close_by_series(scale.loc.flatten()[:, None], tensors["out/raw_loc"][rows])
        close_by_series(scale.scale.flatten()[:, None], tensors["out/raw_scale"][rows])
        # Tokens that hold nothing are looked at by none; ours leave those before the first value out.
        reference = tensors["out/raw_encoder_hidden"][rows][:, -found.shape[2] :]
        close(found[0][seen[0]], reference[seen[0]])
        close_by_series(model.quantiles(columns)[0].permute(1, 2, 0), tensors["out/raw_quantiles"][rows])
    assert sum(p.numel() for p in model.parameters()) == info["n_params"]


@torch.inference_mode()
def test_golden_case_when_any_horizon_is_asked_then_raw_quantiles_agree(case: tuple) -> None:
    _, tensors, model = case
    checked = 0
    for key in tensors:
        if not key.startswith("out/") or "quantiles" not in key or "raw" in key:
            continue
        horizon, reference = int(key.rpartition("_h")[2]), tensors[key]
        if "tensor" in key:
            series, kept = tensors["in/context_tensor"], slice(None)
        elif "cross_learning" in key:
            series, kept = tensors["in/context"][None], slice(None)
        elif "in/context" in tensors:
            series, kept = groups_of(tensors), slice(None)
        else:
            series, kept = groups_of(tensors), slice(0, 1) if "_a_" in key else slice(1, 2)
        found = model.unroll(columns_of(series, horizon))[kept].permute(0, 2, 3, 1).flatten(0, 1)
        close_by_series(found, reference.reshape(found.shape))
        checked += 1
    assert checked >= 2


def test_when_values_have_weights_then_quantiles_are_those_by_hand() -> None:
    values, weights = torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0.25, 0.25, 0.5])
    found = weighted_quantiles(values, weights, torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9]))
    torch.testing.assert_close(found, torch.tensor([[1.0, 1.0, 1.5, 2.0, 2.6]]))


def test_when_the_config_is_of_another_kind_then_it_is_refused() -> None:
    with pytest.raises(InputError, match="no key 'chronos_config'"):
        from_reference({}, {})


def test_when_a_covariate_of_the_future_is_known_then_the_forecast_takes_it_into_account() -> None:
    torch.manual_seed(0)
    model = Chronos2(48, 16, Chronos2.config_type.tiny()).eval()
    past = torch.randn(2, 48, 1, dtype=torch.float64)
    known = torch.randn(2, 64, 1, dtype=torch.float64)
    seen = torch.ones(2, 64, 1, dtype=torch.bool)
    options = {"known_past": known[:, :48], "known_past_observed": seen[:, :48], "known_future_observed": seen[:, 48:]}
    batch = Batch(past, seen[:, :48], 16, known_future=known[:, 48:], **options)
    other = Batch(past, seen[:, :48], 16, known_future=known[:, 48:].flip(1), **options)
    first, second = (model.predict(one, (0.5,)).mean for one in (batch, other))
    assert (first - second).abs().max() > 1e-4
