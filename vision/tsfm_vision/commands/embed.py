"""``tsfm image embed``: the images in a column of a table become columns of numbers, which forecasts can use.

Annotations and defaults of the options only use the standard library, so that help is fast.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tsfm_data.errors import InputError, check_sizes
from tsfm_data.io import atomic_file, check_new, read_table
from tsfm_data.output import note, say
from tsfm_data.progress import progress
from tsfm_vision.commands.image import name_of, open_model
from tsfm_vision.evaluation import read_pictures
from tsfm_vision.weights import data_config


def embed(
    input: Path,
    *,
    column: str,
    output: Path,
    model: str | None = None,
    components: int = 4,
    overwrite: bool = False,
    batch_size: int = 64,
    device: str = "cpu",
    on_bad: Literal["error", "skip"] = "error",
) -> None:
    """Replace a column of image files by columns of numbers.

    An image model turns each image into features. The columns are the principal components of these over the images of
    the table. They are covariates for tsfm forecast: --known-covariates if the images of the future are known, else
    --past-covariates. To forecast with images of the future, append rows with these images and without a target before
    this command. The image model is not trained here; tsfm fit --config vision/sales trains one together with a
    forecaster, for one image per series.

    Args:
        input: CSV, Excel, Parquet or Arrow file with a column of paths, relative to the folder of the table.
        column: the column of paths; a cell without one stays empty.
        output: file for the table (.csv or .parquet) with COLUMN_1, COLUMN_2, ... in place of the column.
        model: a model folder written by tsfm fit, the folder of a run, or a name of tsfm weights list; by default the
            image model that ships with the package.
        components: number of columns.
        overwrite: replace an existing output.
        batch_size: images per batch.
        device: where the model runs: cpu, cuda, or cuda:1 for the second GPU.
        on_bad: what to do with images that are missing or cannot be read: error, or skip, which leaves their cells
            empty and counts them.
    """
    check_sizes(components=components, batch_size=batch_size)
    if output.suffix not in (".csv", ".parquet"):
        raise InputError(f"{output}: expected a .csv or .parquet file, found {output.suffix or 'no suffix'}")
    check_new([output], overwrite, [str(input), model])
    frame = read_table(input).frame
    if column not in frame.columns:
        raise InputError(f"{input}: expected the column {column}, found {', '.join(map(str, frame.columns))[:200]}")
    paths = [str(cell).strip() if isinstance(cell, str) else "" for cell in frame[column]]
    folder, net, _ = open_model(model, device)
    features, bad = features_of(net, input.parent, sorted({*paths} - {""}), batch_size)
    if bad and on_bad == "error":
        raise InputError(f"{input}, column {column}: {bad[0]} ({len(bad)} such in all); or give --on-bad skip")
    values = principal_components(torch.stack(list(features.values())) if features else torch.empty(0, 1), components)
    if values is None:
        raise InputError(f"{input}, column {column}: expected at least two different images, found {len(features)}")
    by_path = dict(zip(features, values.tolist(), strict=True))
    place = list(frame.columns).index(column)
    empty = [None] * values.shape[1]
    table = [by_path.get(path, empty) for path in paths]
    frame = frame.drop(columns=column)
    names = [f"{column}_{number + 1}" for number in range(values.shape[1])]
    for number, name in enumerate(names):
        if name in frame.columns:
            raise InputError(f"{input}: expected no column {name}, which is the name of a result: rename it")
        frame.insert(place + number, name, [row[number] for row in table])
    with atomic_file(output) as file:
        frame.to_csv(file, index=False) if output.suffix == ".csv" else frame.to_parquet(file, index=False)
    if bad:
        rows = sum(path not in by_path for path in paths if path)
        note(f"note: {len(bad)} images cannot be read, {rows} rows have none; the first: {bad[0]}")
    say(f"{output}: {', '.join(names)} from {len(features):,} images, model {name_of(folder)}")


@torch.inference_mode()
def features_of(
    net: nn.Module, folder: Path, paths: list[str], batch_size: int
) -> tuple[dict[str, Float[Tensor, " C"]], list[str]]:
    """Features of images by their paths, and a message for each that cannot be read.

    Args:
        net: an image model in evaluation mode, on any device.
        folder: what relative paths start from.
        paths: of the files.
        batch_size: images per batch.
    """
    model: Any = net  # timm's methods are not those of every module
    config, device = data_config(net), next(net.parameters()).device
    found: dict[str, Tensor] = {}
    bad: list[str] = []
    for start in progress(range(0, len(paths), batch_size), "images"):
        read, unread = read_pictures(paths[start : start + batch_size], folder, config)
        bad += unread
        if read:
            x = model.forward_head(model.forward_features(torch.stack(list(read.values())).to(device)), pre_logits=True)
            found.update(zip(read, x.float().flatten(1).cpu(), strict=True))
    return found, bad


def principal_components(x_NC: Float[Tensor, "N C"], count: int) -> Float[Tensor, "N D"] | None:
    """The first components, at most ``count``, with standard deviation 1; None if all rows are the same."""
    if len(x_NC) < 2:
        return None
    u_NM, size_M, direction_MC = torch.linalg.svd((x_NC - x_NC.mean(0)).double(), full_matrices=False)
    count = min(count, int((size_M > 1e-6 * size_M[0].clamp(min=1e-12)).sum()))
    largest_M1 = direction_MC.abs().argmax(1, keepdim=True)  # decides the sign, which is arbitrary
    values = u_NM * direction_MC.gather(1, largest_M1).sign()[:, 0] * len(x_NC) ** 0.5
    return values[:, :count] if count else None
