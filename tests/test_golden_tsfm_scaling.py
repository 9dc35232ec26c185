"""Encoder and decoder equal the scaling-law code: every golden case found is a test.

Padding tokens are left out: nobody sees them here, while the original lets them see each other.
"""

import json
from pathlib import Path

import pytest
import torch
from conftest import golden_cases
from golden_series import close
from safetensors.torch import load_file

from tsfm.models.packing import Packed, append_future, pack_window
from tsfm.models.scaling_law.decoder import Decoder
from tsfm.models.scaling_law.encoder import Encoder
from tsfm.models.scaling_law.trunk import PackedForecaster, from_reference_state, mask_of
from tsfm.nn.layers import Rotary

CASES = golden_cases("timeseries/tsfm_scaling")
PATCH = 32
FIELDS = {"target": "target", "observed": "observed_mask", "sample_id": "sample_id", "time_id": "time_id"}
FIELDS |= {"variate_id": "variate_id", "is_predicted": "prediction_mask"}


class Case:
    def __init__(self, path: Path) -> None:
        self.info = json.loads(path.read_text())
        self.config = self.info["config"]
        self.tensors = load_file(path.with_suffix(".safetensors"))
        weights = {k.removeprefix("weights/"): v for k, v in self.tensors.items() if k.startswith("weights/")}
        kind = Encoder if self.config["arch"] == "encoder" else Decoder
        sizes = (self.config.get("context_length", 64), self.config.get("prediction_length", 32))
        self.model = from_reference_state(kind, weights, *sizes, scaling=self.config["scaling"]).eval()

    def packed(self, prefix: str) -> Packed:
        found = {ours: self.tensors[prefix + theirs] for ours, theirs in FIELDS.items()}
        return Packed(**{name: x.long() if x.dtype == torch.int32 else x for name, x in found.items()})

    def out(self, name: str) -> torch.Tensor:
        return self.tensors[f"out/{name}"]


def check_distribution(case: Case, packed: Packed) -> None:
    """Scaler, tokens and parameters of the mixture, on all tokens but padding."""
    model, real = case.model, packed.sample_id > 0
    loc, scale = model.scale(packed)
    for found, name in ((loc, "scaler_loc"), (scale, "scaler_scale")):
        reference = case.out(name)[..., :1]
        close(found / reference.abs().clamp(min=1), reference / reference.abs().clamp(min=1))
    close((packed.target - loc) / scale, case.out("scaled_target"))
    close(model.represent(packed, loc, scale)[real], case.out("hidden")[real])
    mixture = model.distribution(packed)
    close(mixture.log_weights[real], case.out("mix_log_weights")[real])
    for name in ("df", "loc", "scale"):
        stacked = torch.stack([getattr(part, name) for part in mixture.components], dim=-1)
        close(stacked[real], case.out(f"comp_{name}")[real])


def check_layers(case: Case, packed: Packed) -> None:
    """The tokens after the input projection and every block."""
    model, real = case.model, packed.sample_id > 0
    x = model.in_proj((packed.target - model.scale(packed)[0]) / model.scale(packed)[1])
    close(x, case.out("embedded"))
    if isinstance(model, Encoder):
        x = torch.where(packed.is_predicted[..., None], model.mask_encoding.weight, x)
    rotary = Rotary.at(packed.time_id, model.encoder.rotated)
    for k, layer in enumerate(model.encoder.layers):
        x = layer(x, mask_of(packed, causal=isinstance(model, Decoder)), rotary)
        if f"out/layer_{k}" in case.tensors:
            close(x[real], case.out(f"layer_{k}")[real])


@pytest.mark.parametrize("path", [p for p in CASES if "forecast" not in p.stem], ids=lambda path: path.stem)
def test_golden_case_when_rows_are_packed_then_likelihoods_and_gradients_agree(path: Path) -> None:
    case = Case(path)
    packed, tensors = case.packed("in/"), case.tensors
    check_distribution(case, packed)
    check_layers(case, packed)
    real = packed.sample_id > 0
    label, observed = tensors["in/label"], tensors["in/label_observed_mask"]
    mixture = case.model.distribution(packed)
    log_prob = mixture.log_prob(label)
    close(log_prob[real], case.out("log_prob")[real])
    units = case.out("scaler_scale")[..., :1]
    close((mixture.mean / units)[real], (case.out("mean") / units)[real])
    close((mixture.variance / units.square())[real], (case.out("variance") / units.square())[real])
    loss = packed.loss(-log_prob, observed)
    close(loss, case.out("loss"))
    loss.backward()
    norms = case.info["grad_param_norms"]
    found = {name: p.grad.norm() for name, p in case.model.named_parameters() if p.grad is not None}
    assert found.keys() == norms.keys()
    for name, norm in found.items():
        close(norm, torch.tensor(norms[name]), 1e-3)
    assert sum(p.numel() for p in case.model.parameters()) == case.info["n_params"]


@pytest.mark.parametrize("path", [p for p in CASES if "decoder_d" in p.stem], ids=lambda path: path.stem)
def test_golden_decoder_rows_when_shifted_then_the_labels_are_the_next_patches(path: Path) -> None:
    case = Case(path)
    packed = case.packed("in/")
    label, observed = packed.next_patch()
    inside = torch.nn.functional.pad(packed.sample_id[:, 1:] == packed.sample_id[:, :-1], (0, 1))
    torch.testing.assert_close(label[inside], case.tensors["in/label"][inside])
    assert torch.equal(observed[inside], case.tensors["in/label_observed_mask"][inside])


@pytest.mark.parametrize("path", [p for p in CASES if "forecast" in p.stem], ids=lambda path: path.stem)
def test_golden_forecast_when_a_raw_context_is_given_then_packing_and_forecast_agree(path: Path) -> None:
    case = Case(path)
    tensors, model = case.tensors, case.model
    past, observed, pad = (tensors[f"in/past_{name}"] for name in ("target", "observed_target", "is_pad"))
    window = pack_window(past, observed, pad, PATCH)
    future = torch.zeros(len(past), model.horizon, 1)
    packed = append_future(window, future, torch.ones_like(future, dtype=torch.bool), PATCH)
    for ours, theirs in FIELDS.items():
        reference = tensors[f"out/packed_{theirs}"]
        torch.testing.assert_close(
            getattr(packed, ours), reference, check_dtype=False, msg=lambda m, n=ours: f"{n}: {m}"
        )
    check_distribution(case, packed)
    mean, reference = forecast_mean(model, window, packed), case.out("forecast_mean_feedback")
    for row, expected in zip(mean, reference, strict=True):
        close(row, expected)
    if "out/val_loss" in tensors:
        known = append_future(window, tensors["in/future_target"], torch.ones_like(future, dtype=torch.bool), PATCH)
        nll = -model.distribution(known).log_prob(known.target)
        counts = known.observed & known.is_predicted[..., None]
        close(torch.where(counts, nll, 0.0).sum((1, 2)) / counts.sum((1, 2)), case.out("val_loss"))


def forecast_mean(model: PackedForecaster, window: Packed, packed: Packed) -> torch.Tensor:
    """Means of the horizon; the decoder feeds each patch's mean back."""
    if isinstance(model, Decoder):
        means = torch.cat([patch.mean for patch in model.decode(window, 3, lambda patch: patch.mean)], dim=1)
    else:
        means = model.distribution(packed).mean[:, -3:]
    return means.flatten(1)[:, : model.horizon]
