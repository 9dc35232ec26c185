"""``tsfm export``: writes a model as a file that runs without the suite."""

from pathlib import Path
from typing import Literal

from tsfm import inference
from tsfm_data.errors import InputError, check_horizon
from tsfm_data.io import check_new
from tsfm_data.output import say


def export(
    *,
    output: Path,
    model: str | None = None,
    horizon: int | None = None,
    format: Literal["onnx", "torch"] = "onnx",
    dtype: Literal["fp32", "bf16", "int8"] = "fp32",
    overwrite: bool = False,
) -> None:
    """Write a model as ONNX or torch.export and compare the file with the model.

    Its input is past [series, steps] (float64, NaN for missing values), with any number of series and steps, and its
    output is quantiles [series, horizon, levels] in the same units. docs/serve_onnx.py runs it with only NumPy and ONNX
    Runtime.

    Args:
        output: file to write (.onnx or .pt2).
        model: a name of tsfm weights list, or a model folder; by default the model that ships with the package.
        horizon: time steps to forecast; by default the model's horizon.
        format: onnx, or torch for torch.export.load.
        dtype: type of the stored weights; bf16 takes half the space and int8 a quarter; the error is shown.
        overwrite: replace an existing output.
    """
    suffix = {"onnx": ".onnx", "torch": ".pt2"}[format]
    if output.suffix != suffix:
        raise InputError(f"expected an output that ends in {suffix} for format {format}, found {output}: rename it")
    if horizon is not None:
        check_horizon(horizon, option="--horizon")
    check_new([output], overwrite, [model])
    exported = inference.export(inference.load_model(model), output, horizon, format, dtype)
    levels = ", ".join(f"{level:g}" for level in exported.levels)
    say(f"{output}: {exported.bytes / 1e6:.1f} MB, {exported.horizon} steps at the levels {levels}")
    say(
        "difference from the model in float32 on hard inputs, relative to the size of a series: "
        f"{exported.mean:.1e} on average, {exported.worst:.1e} at most"
    )
