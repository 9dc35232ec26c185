"""Export to ONNX and ``torch.export``, for use without this package; every file is checked against the model.

The exported model takes ``past`` [series, steps] in float64, in the units of the data, with NaN for missing
values and any number of series and steps, and returns ``quantiles`` [series, horizon, levels] in the same units.
"""

import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from tsfm.models import Forecaster, fourier_matrices
from tsfm_data.errors import InputError
from tsfm_data.io import atomic_file
from tsfm_data.windows import Batch

Format = Literal["onnx", "torch"]
Dtype = Literal["fp32", "bf16", "int8"]
MIN_WEIGHTS = 4096  # smaller matrices are not compressed
TOLERANCE = 1e-3  # relative to the size of a series: float32 sums in another order
Run = Callable[[Float[np.ndarray, "B T"]], Float[np.ndarray, "B H K"]]


class Exportable(nn.Module):
    """A forecaster as a function of an array, like ``Forecaster.predict`` at the trained levels.

    Args:
        model: the forecaster; every series is forecast independently.
        horizon: steps to forecast.
    """

    def __init__(self, model: Forecaster, horizon: int) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.horizon = horizon

    def forward(self, past: Float[Tensor, "B T"]) -> Float[Tensor, "B H K"]:
        """Quantiles of every series, from its last ``context`` steps."""
        # Always padded or cut to the model's context, so that the exported graph has fixed shapes inside.
        empty = past.new_full((past.shape[0], self.model.context), float("nan"))
        rows = torch.cat([empty, past], 1)[:, -self.model.context :, None]
        seen = ~rows.isnan()
        batch, scale = self.model.standardise(Batch(torch.where(seen, rows, 0.0), seen, self.horizon))
        quantiles = self.model.rollout(batch).double()
        conformal = self.model.conformal
        if conformal is not None and conformal.calibrated:
            quantiles = conformal.double().quantiles(self.model.centre(quantiles), self.levels)
        return (quantiles * scale.scale[..., None] + scale.loc[..., None])[:, :, 0]

    @property
    def levels(self) -> tuple[float, ...]:
        """The levels of the quantiles."""
        return self.model.levels


@dataclass(frozen=True)
class Exported:
    """An exported file.

    Attributes:
        file: its path.
        bytes: its size.
        levels: quantile levels.
        horizon: steps that it forecasts.
        worst: largest difference from the float32 model on difficult inputs, relative to the size of a series.
        mean: mean of these differences.
    """

    file: Path
    bytes: int
    levels: tuple[float, ...]
    horizon: int
    worst: float
    mean: float


def export(
    model: Forecaster, file: Path, horizon: int | None = None, kind: Format = "onnx", dtype: Dtype = "fp32"
) -> Exported:
    """Write a model as ONNX or ``torch.export``, run the file, and compare it with the model.

    Args:
        model: the model; it is not changed.
        file: path to write.
        horizon: steps to forecast; None takes the model's own.
        kind: "onnx", or "torch" for ``torch.export.load``.
        dtype: type of the stored weights: "fp32", "bf16" (half the size) or "int8" (a quarter, with a scale per row).
            Computation is always in float32.

    Raises:
        InputError: the model needs calendar features, an exporter is missing, or the file differs from the model.
    """
    if model.marks is not None:
        raise InputError(
            f"expected a model of values alone, found {model.name}, which wants calendar features: export another"
        )
    steps = horizon or model.horizon
    whole = Exportable(copy.deepcopy(model).cpu(), steps)
    small = Exportable(copy.deepcopy(model).cpu(), steps)
    compress(small, dtype)
    program = trace(small)
    with atomic_file(file) as temporary:
        run = write_onnx(program, temporary, whole.levels) if kind == "onnx" else write_torch(program, temporary)
        size = temporary.stat().st_size
        exact = differences(run, small, model.context)
        if not exact.max() <= TOLERANCE:
            raise InputError(
                f"expected a file that repeats the model, found a difference of {exact.max():.2g} times the size "
                f"of a series in {file.name}: export with --format {'torch' if kind == 'onnx' else 'onnx'}"
            )
        errors = exact if dtype == "fp32" else differences(run, whole, model.context)
    return Exported(file, size, whole.levels, steps, float(errors.max()), float(errors.mean()))


def trace(model: Exportable) -> torch.export.ExportedProgram:
    """The graph of a model, for any number of series and steps."""
    example = torch.randn(3, model.model.context, dtype=torch.float64).cumsum(1)
    torch.compiler.assume_constant_result(fourier_matrices)
    shapes = {"past": {0: torch.export.Dim("series", min=1), 1: torch.export.Dim("steps", min=1)}}
    with torch.no_grad(), quiet():
        try:
            # Only the strict mode keeps len(x) of a tensor symbolic.
            return torch.export.export(model, (example,), dynamic_shapes=shapes, strict=True)
        except Exception as error:
            raise InputError(
                f"expected a model that torch.export can trace, found {type(error).__name__} in {model.model.name}: "
                "export a zero-shot encoder or decoder"
            ) from error


def write_torch(program: torch.export.ExportedProgram, file: Path) -> Run:
    """Write the graph for ``torch.export.load``; returns the function that runs the file."""
    stream = io.BytesIO()  # a file name would need the suffix .pt2
    torch.export.save(program, stream)
    file.write_bytes(stream.getvalue())
    loaded = torch.export.load(io.BytesIO(file.read_bytes())).module()
    return lambda past: loaded(torch.from_numpy(past)).numpy()


def write_onnx(program: torch.export.ExportedProgram, file: Path, levels: tuple[float, ...]) -> Run:
    """Write the graph as ONNX; returns the function that runs the file.

    Raises:
        InputError: an exporter is missing.
    """
    try:
        from tsfm.inference import onnx_file  # its libraries are the extra "export"
    except ImportError as error:
        raise InputError(
            "expected onnx, onnxscript and onnxruntime, found none: pip install onnx onnxscript onnxruntime, or use "
            "--format torch"
        ) from error
    with quiet():
        return onnx_file.write(program, file, levels)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings and log messages of the exporters."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)


class Compressed(nn.Module):
    """A linear layer with weights stored in fewer bytes; computation is in float32.

    Args:
        layer: the layer.
        dtype: "bf16", or "int8" with one scale per output.
    """

    def __init__(self, layer: nn.Linear, dtype: Dtype) -> None:
        super().__init__()
        self.bias = layer.bias
        weight = layer.weight.detach()
        if dtype == "bf16":
            stored, scale = weight.bfloat16(), torch.ones(1, 1)
        else:
            scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
            stored = (weight / scale).round().to(torch.int8)
        self.stored: Tensor
        self.scale: Tensor
        self.register_buffer("stored", stored)
        self.register_buffer("scale", scale)

    def forward(self, x: Float[Tensor, "*S _"]) -> Float[Tensor, "*S _"]:
        """The output of the layer."""
        return nn.functional.linear(x, self.stored.float() * self.scale, self.bias)


def compress(model: nn.Module, dtype: Dtype) -> None:
    """Store the weights of the large linear layers of a model in fewer bytes."""
    if dtype == "fp32":
        return
    for name, part in list(model.named_modules()):
        if isinstance(part, nn.Linear) and part.weight.numel() >= MIN_WEIGHTS:
            above, _, own = name.rpartition(".")
            setattr(model.get_submodule(above), own, Compressed(part, dtype))


def hard_inputs(context: int, seed: int = 0) -> list[Float[np.ndarray, "B T"]]:
    """Series that are difficult for exports: seasons, missing values, constants, large offsets; of several lengths."""
    rng = np.random.default_rng(seed)
    tables = []
    for rows, steps in ((5, context), (1, max(2, context // 3)), (4, context + 37), (2, 1)):
        time = np.arange(steps)
        x = rng.normal(size=(rows, steps)).cumsum(1) + 3 * np.sin(2 * np.pi * time / 12)
        x[0] = x[0] * 1e-3 + 1e6
        if rows > 2:
            x[1, rng.random(steps) < 0.3] = np.nan
            x[2] = 7.0
            x[3, : steps // 2] = np.nan
        if rows > 4:
            x[4] = np.nan
        tables.append(x)
    return tables


def differences(run: Run, model: Exportable, context: int) -> Float[np.ndarray, " N"]:
    """Differences between a file and a model on difficult inputs, relative to the size of each series.

    The size is the standard deviation of its values, or the largest distance of its forecast from their mean if that is
    larger, because the rounding errors of float32 are relative.
    """
    errors = []
    for past in hard_inputs(context):
        with torch.no_grad():
            expected = model(torch.from_numpy(past)).numpy()
        seen = np.isfinite(past)
        mean = np.where(seen, past, 0).sum(1) / seen.sum(1).clip(min=1)
        spread = np.sqrt(np.square(np.where(seen, past - mean[:, None], 0.0)).sum(1) / seen.sum(1).clip(min=1))
        reach = np.abs(expected - mean[:, None, None]).max((1, 2))
        size = np.maximum(np.where(spread > 0, spread, 1.0), reach)[:, None, None]
        errors.append((np.abs(run(past) - expected) / size).ravel())
    return np.concatenate(errors)
