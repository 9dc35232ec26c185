"""How close models of series come to the outputs of the originals, and what the golden files call their inputs."""

import torch

from tsfm.models.covariates import WithCovariates
from tsfm.models.moirai import Moirai
from tsfm.models.packing import Packed

# A field of ``Packed`` -> its name in the golden files.
FIELDS = {"target": "target", "observed": "observed_mask", "sample_id": "sample_id", "time_id": "time_id"}
FIELDS |= {"variate_id": "variate_id", "is_predicted": "prediction_mask"}
PARAMETERS = ("c0_df", "c0_loc", "c0_scale", "c1_loc", "c2_total_count", "c2_logits", "c3_loc", "c3_scale")


def close(ours: torch.Tensor, reference: torch.Tensor, tolerance: float = 5e-5) -> None:
    """``max|a - b| <= tolerance * max|reference|``, the tolerance that the golden files state."""
    assert ours.shape == reference.shape
    error = (ours - reference).abs().max().item()
    assert error <= tolerance * reference.abs().max().item(), f"off by {error} of {reference.abs().max().item()}"


def close_by_series(ours: torch.Tensor, reference: torch.Tensor) -> None:
    """The same a series at a time: their scales differ."""
    for row, expected in zip(ours, reference, strict=True):
        close(row, expected)


def close_or_infinite(ours: torch.Tensor, reference: torch.Tensor, tolerance: float = 5e-5) -> None:
    """The same of values of which some may be infinite: in the same places."""
    assert ours.shape == reference.shape
    assert ours.isfinite().equal(reference.isfinite())
    inside = reference.isfinite()
    error, size = (ours - reference)[inside].abs().max().item(), reference[inside].abs().max().item()
    assert error <= tolerance * size, f"off by {error} of {size}"


def split(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Values with 0 for NaN, and where there is a value."""
    return x.nan_to_num(0.0), ~x.isnan()


def columns_of(series: torch.Tensor, horizon: int) -> WithCovariates:
    """Groups [B, W, T] with NaN for what is missing, as windows whose future is not known."""
    past = series.transpose(1, 2)
    future = past.new_zeros(len(past), horizon, past.shape[2])
    return WithCovariates(past.nan_to_num(0.0), ~past.isnan(), future, torch.zeros_like(future, dtype=torch.bool))


def check_distribution(model: Moirai, packed: Packed, tensors: dict[str, torch.Tensor]) -> None:
    """Scaler, tokens and parameters of the mixture, on all tokens but padding."""
    real = packed.sample_id > 0
    loc, scale = packed.scale()
    for found, name in ((loc, "scaler_loc"), (scale, "scaler_scale")):
        reference = tensors[f"out/{name}"]
        close_or_infinite(found / reference.abs().clamp(min=1), reference / reference.abs().clamp(min=1))
    if "out/embedded" in tensors:
        close_or_infinite(model.embed(packed, loc, scale), tensors["out/embedded"])
    close_or_infinite(model.represent(packed, loc, scale)[real], tensors["out/hidden"][real])
    mixture = model.distribution(packed)
    close_or_infinite(mixture.log_weights[real], tensors["out/mix_logits"].log_softmax(-1)[real])
    for name in PARAMETERS:
        found = getattr(mixture.components[int(name[1])], name[3:])
        close_or_infinite(found[real], tensors[f"out/{name}"][real])
