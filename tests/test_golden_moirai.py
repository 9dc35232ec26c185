"""Moirai 1.x equals uni2ts: every golden case found is a test.

Padding tokens are left out: nobody sees them here, while the original lets them see each other.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import golden_cases
from golden_series import FIELDS, check_distribution, close_or_infinite
from safetensors.torch import load_file

from tsfm.models.moirai import FAMILY_NAMES, Moirai, from_reference
from tsfm.models.packing import Packed, append_future, join, pack_window
from tsfm_data.windows.batch import Batch

CASES = [path for path in golden_cases("timeseries/moirai") if not path.stem.startswith("moirai2")]


def load(path: Path) -> tuple[dict, dict[str, torch.Tensor], Moirai]:
    info = json.loads(path.read_text())
    config = info["config"]
    tensors = load_file(path.with_suffix(".safetensors"))
    state = {k.removeprefix("weights/"): v.float() for k, v in tensors.items() if k.startswith("weights/")}
    published = {
        "d_model": config["d_model"],
        "num_layers": config["num_layers"],
        "patch_sizes": config["patch_sizes"],
        "distr_output": {"components": [{"_target_": f"uni2ts.distribution.{name}"} for name in FAMILY_NAMES]},
    }
    sizes = (config.get("context_length", 64), config.get("prediction_length", 32))
    return info, tensors, from_reference(published, state, *sizes, patch_size=config.get("patch_size", 8)).eval()


@pytest.mark.parametrize("path", [p for p in CASES if "forecast" not in p.stem], ids=lambda path: path.stem)
def test_golden_case_when_rows_are_packed_then_likelihoods_and_gradients_agree(path: Path) -> None:
    info, tensors, model = load(path)
    found = {ours: tensors[f"in/{theirs}"] for ours, theirs in FIELDS.items()}
    packed = Packed(**found, patch_size=tensors["in/patch_size"])
    check_distribution(model, packed, tensors)
    real = packed.sample_id > 0
    mixture = model.distribution(packed)
    log_prob = mixture.log_prob(packed.target)
    # A normal with deviation 0.001 amplifies rounding: 5e-3 is what the golden files state.
    torch.testing.assert_close(log_prob[real], tensors["out/log_prob"][real], atol=5e-3, rtol=5e-5)
    if "out/mean" in tensors:
        units = tensors["out/scaler_scale"]
        close_or_infinite((mixture.mean / units)[real], (tensors["out/mean"] / units)[real])
    loss = model.packed_loss(packed)
    close_or_infinite(loss, tensors["out/loss"])
    loss.backward()
    norms = info["grad_param_norms"]
    largest = max(norms.values())
    grads = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}
    assert grads.keys() == norms.keys()
    for name, norm in norms.items():
        assert grads[name] == pytest.approx(norm, rel=2e-3, abs=1e-6 * largest), name
    assert sum(p.numel() for p in model.parameters()) == info["n_params"]


def windows(tensors: dict[str, torch.Tensor], patch: int, future: torch.Tensor) -> Packed:
    """Targets, then the covariate known in the future, then the one of the past alone, as variates of one row."""
    pad = tensors["in/past_is_pad"]
    context = pad.shape[1]
    target = pack_window(tensors["in/past_target"], tensors["in/past_observed_target"], pad, patch)
    target = append_future(target, future, torch.ones_like(future, dtype=torch.bool), patch)
    known, seen = tensors["in/feat_dynamic_real"], tensors["in/observed_feat_dynamic_real"]
    feature = pack_window(known[:, :context], seen[:, :context], pad, patch)
    feature = append_future(feature, known[:, context:], seen[:, context:], patch)
    feature = replace(feature, is_predicted=torch.zeros_like(feature.is_predicted), variate_id=feature.variate_id + 2)
    seen = tensors["in/past_observed_feat_dynamic_real"]
    past = pack_window(tensors["in/past_feat_dynamic_real"], seen, pad, patch)
    past = replace(past, variate_id=past.variate_id + 3)
    # The original does not count the steps that fill a covariate up in front as padding.
    real = ~torch.nn.functional.pad(pad, (-context % patch, 0)).unflatten(1, (-1, patch)).all(-1)
    for part in (feature, past):
        part.sample_id[:, : real.shape[1]] = real.long()
    return join(target, feature, past)


def batch_of(tensors: dict[str, torch.Tensor], rows: torch.Tensor) -> Batch:
    """Some of these windows as a batch with covariates."""
    tensors = {key: x[rows] for key, x in tensors.items() if key.startswith("in/")}
    past, known = tensors["in/past_target"], tensors["in/feat_dynamic_real"]
    context, seen = past.shape[1], tensors["in/observed_feat_dynamic_real"]
    return Batch(
        past=past,
        past_observed=tensors["in/past_observed_target"],
        horizon=known.shape[1] - context,
        past_covariates=tensors["in/past_feat_dynamic_real"],
        past_covariates_observed=tensors["in/past_observed_feat_dynamic_real"],
        known_past=known[:, :context],
        known_past_observed=seen[:, :context],
        known_future=known[:, context:],
        known_future_observed=seen[:, context:],
    )


@pytest.mark.parametrize("path", [p for p in CASES if "forecast" in p.stem], ids=lambda path: path.stem)
def test_golden_forecast_when_covariates_are_given_then_packing_and_forecast_agree(path: Path) -> None:
    info, tensors, model = load(path)
    config, future = info["config"], tensors["in/future_target"]
    patch, horizon = config["patch_size"], config["prediction_length"]
    packed = windows(tensors, patch, torch.zeros_like(future))
    for ours, theirs in FIELDS.items():
        torch.testing.assert_close(getattr(packed, ours), tensors[f"out/packed_{theirs}"], check_dtype=False)
    packed = model.sized(packed, patch)
    check_distribution(model, packed, tensors)
    mean = model.distribution(packed).mean[packed.is_predicted].view(len(packed.target), 2, -1)[..., :horizon]
    reference = tensors["out/forecast_mean"].transpose(1, 2)
    for found, expected in zip(mean.flatten(0, 1), reference.flatten(0, 1), strict=True):
        close_or_infinite(found, expected)
    # Windows that fill their context, for the original lets a covariate begin before the window does (see above).
    whole = ~tensors["in/past_is_pad"].any(1).bool()
    assert whole.any()
    batch = batch_of(tensors, whole)
    packed = model.pack(batch, patch)
    mean = model.distribution(packed).mean[packed.is_predicted].view(len(packed.target), 2, -1)[..., :horizon]
    for found, expected in zip(mean.flatten(0, 1), reference[whole].flatten(0, 1), strict=True):
        close_or_infinite(found, expected)
    every = torch.ones_like(future[whole], dtype=torch.bool)
    for key in (key for key in tensors if key.startswith("out/val_loss_patch")):
        size = int(key.removeprefix("out/val_loss_patch"))
        close_or_infinite(model.window_loss(batch, (future[whole], every), size), tensors[key][whole])
        rows = model.sized(windows(tensors, size, future), size)
        nll = -model.distribution(rows).log_prob(rows.target)
        counts = rows.observed & rows.is_predicted[..., None]
        # A sum over variates of the means over their steps.
        close_or_infinite(torch.where(counts, nll, 0.0).sum((1, 2)) / horizon, tensors[key])
