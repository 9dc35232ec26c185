"""Model folders: ``config.json``, ``model.safetensors`` and the card ``README.md``. No pickle is ever read."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import torch
from annotated_types import Ge, Le
from safetensors import SafetensorError
from safetensors.torch import save_file

import tsfm
from tsfm.models import FineTuning, Forecaster, Pretraining, TrainingData, model_class
from tsfm.weights import registry
from tsfm.weights.shapes import check_shapes, compare_shapes
from tsfm.weights.tensors import check_file, layout, read_safetensors
from tsfm_data.errors import LONGEST_HORIZON, InputError, unknown_name
from tsfm_data.io import atomic_folder, check_record, check_version, read_record
from tsfm_data.windows import Batch

FORMAT_VERSION = 1
# Enough windows for stable 99.9 % scores, and never more than some hundred megabytes.
CALIBRATION_VALUES = 20_000_000
T = TypeVar("T")


@dataclass(frozen=True)
class ModelConfig:
    """The content of ``config.json``.

    Attributes:
        model_type: the kind of model.
        context: steps of history.
        horizon: steps to forecast in one pass.
        config: sizes, of the config class of the model.
        training_data, pretraining, finetuning: what the model was trained on; their classes have these names.
    """

    model_type: str
    context: Annotated[int, Ge(1), Le(LONGEST_HORIZON)]
    horizon: Annotated[int, Ge(1), Le(LONGEST_HORIZON)]
    config: dict[str, Any]
    training_data: dict[str, Any] | None = None
    pretraining: dict[str, Any] | None = None
    finetuning: dict[str, Any] | None = None


def save(model: Forecaster, folder: str | Path, card: str | None = None, dtype: torch.dtype | None = None) -> None:
    """Write a model folder, whole or not at all.

    Args:
        model: what to save.
        folder: where; an older one is replaced.
        card: text of ``README.md``; by default one made from the model's own facts.
        dtype: of the stored weights; ``torch.float16`` halves the file. The model is loaded in its own all the same.
    """
    config = {
        "format_version": FORMAT_VERSION,
        "model_type": model.model_type,
        "context": model.context,
        "horizon": model.horizon,
        "config": asdict(model.config),
        "training_data": asdict(model.training_data) if model.training_data else None,
        "pretraining": asdict(model.pretraining) if model.pretraining else None,
        "finetuning": asdict(model.finetuning) if model.finetuning else None,
        "tsfm_version": tsfm.__version__,
    }
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    if dtype is not None:
        state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    with atomic_folder(folder) as temporary:
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        try:
            save_file(state, temporary / "model.safetensors", metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"{error} while writing {folder}") from error
        (temporary / "README.md").write_text(card or default_card(model))


def load(folder: str | Path) -> Forecaster:
    """Read a model folder.

    Args:
        folder: written by ``save``; or the name of a model that ships with the package or was pulled.

    Returns:
        The model in evaluation mode.

    Raises:
        InputError: a file is missing, is not what it says, or does not fit the others.
    """
    path = registry.local_folder(str(folder)) or Path(folder)
    config, kind, sizes = check_folder(path)
    model = kind(config.context, config.horizon, sizes)
    model.training_data, model.pretraining, model.finetuning = facts_of(config, path / "config.json")
    load_weights(model, path / "model.safetensors")
    model.name = path.resolve().parent.name if path.resolve().name == "model" else path.resolve().name
    return model.eval()


def load_named(model: str, other_names: Iterable[str] = ()) -> Forecaster:
    """A model by its name, or from the folder of a model or of a training run.

    Args:
        model: a name of ``tsfm weights list``, or a folder with ``config.json`` and ``model.safetensors``.
        other_names: what else may be meant by a name that is unknown here, for the hint.

    Raises:
        InputError: there is no such model (near names are listed), or its folder is damaged.
    """
    path = registry.local_folder(model) or Path(model)
    if not path.exists() and len(path.parts) == 1:
        if model.split("@")[0] in registry.published():
            raise InputError(f"expected the weights of {model} on this machine, found none: tsfm weights pull {model}")
        near = [p.name for p in Path().iterdir() if p.is_dir() and (p / "config.json").is_file()]
        known = [*other_names, *registry.released(), *registry.near(model), *near]
        raise InputError(f"{unknown_name('model', model, known)}; or give a model folder")
    inner = path / "model"
    return load(inner if (inner / "config.json").is_file() else path)


def check_folder(folder: Path) -> tuple[ModelConfig, type[Forecaster], Any]:
    """Compare the config of a model folder with the shapes of its weights, before memory is taken for either.

    Args:
        folder: written by ``save``.

    Returns:
        The config, the model's class, and its sizes.

    Raises:
        InputError: see ``load``.
    """
    config, file = read_config(folder), folder / "model.safetensors"
    kind = model_class(config.model_type)
    sizes: Any = from_plain(kind.config_type, config.config, folder / "config.json")
    facts_of(config, folder / "config.json")
    found = layout(file)
    for key in ("layers", "decoder_layers"):
        if getattr(sizes, key, 0) > len(found.shapes):
            raise InputError(
                f"expected {key} of at most the {len(found.shapes)} tensors in {folder}, found {getattr(sizes, key)}: "
                "config.json and the weights belong to different models"
            )
    check_shapes(lambda: kind(config.context, config.horizon, sizes), found, file)
    return config, kind, sizes


def facts_of(config: ModelConfig, file: Path) -> tuple[TrainingData | None, Pretraining | None, FineTuning | None]:
    """What a model was trained, pretrained and fine-tuned on.

    Raises:
        InputError: a key is missing or unknown, or a value has another type.
    """
    return (
        from_plain(TrainingData, config.training_data, file) if config.training_data else None,
        from_plain(Pretraining, config.pretraining, file) if config.pretraining else None,
        from_plain(FineTuning, config.finetuning, file) if config.finetuning else None,
    )


def read_config(folder: Path) -> ModelConfig:
    """``config.json`` of a model folder, checked to be an object of a format that this version reads."""
    file = folder / "config.json"
    if not folder.is_dir():
        raise InputError(f"expected a model folder, found nothing at {folder}: check the path")
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise InputError(
                f"expected {name} in the model folder {folder}, found none: is it the folder 'model' of a run?"
            )
        check_file(folder / name)
    what = "the config.json of a forecasting model"
    plain = read_record(file, dict, what)
    if "architecture" in plain and "model_type" not in plain:
        raise InputError(f"expected a forecasting model in {folder}, found an image model: see tsfm image --help")
    return check_record(check_version(plain, FORMAT_VERSION, file), ModelConfig, file, what)


def load_weights(model: Forecaster, file: Path) -> None:
    """Load a safetensors file into a model, strictly.

    Raises:
        InputError: the file is corrupt or truncated, or a tensor is missing, left over or of another shape.
    """
    state = read_safetensors(file)
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    compare_shapes(expected, {key: tuple(value.shape) for key, value in state.items()}, file)
    model.load_state_dict(state)


def from_plain(kind: type[T], plain: object, where: str | Path) -> T:
    """A dataclass from a JSON object; lists become tuples.

    Raises:
        InputError: not an object, a key that the dataclass does not have, a key that is missing, or a value of another
            type.
    """
    names = {field.name for field in fields(cast(Any, kind))}
    for key in plain if isinstance(plain, dict) else ():
        if key not in names:
            raise InputError(f"{where}: {unknown_name(f'key of {kind.__name__}', str(key)[:60], names)}")
    return check_record(plain, kind, where, f"an object with the keys of {kind.__name__}", hint="correct it")


@torch.inference_mode()
def calibrate(model: Forecaster, batches: Iterable[Batch], values: int = CALIBRATION_VALUES) -> None:
    """Fit a point model's conformal intervals to validation windows; a model with quantiles of its own is left alone.

    Args:
        model: the model, in any mode.
        batches: validation windows with their future, on the scale that the model was trained on.
        values: at most so many residuals are kept; of more, windows are left out evenly.

    Raises:
        InputError: no validation window.
    """
    if model.conformal is None:
        return
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    windows = sum(len(batch) for batch in batches)
    residuals, seen, index = [], [], 0
    every = 1
    for batch in batches:
        batch = batch.to(device)
        if batch.future is None or batch.future_observed is None:
            continue
        if index == 0:
            every = max(1, -(-windows * batch.future[0].numel() // values))
        keep = (torch.arange(index, index + len(batch)) % every == 0).to(device)
        index += len(batch)
        standard, scale = model.on_training_scale(batch)
        error = model.centre(model(standard)) - (batch.future - scale.loc) / scale.error_scale
        residuals.append(error[keep].transpose(1, 2).flatten(0, 1).float())
        seen.append(batch.future_observed[keep].transpose(1, 2).flatten(0, 1))
    if not residuals:
        raise InputError("expected validation windows to calibrate intervals on, found none: give a longer series")
    model.conformal.calibrate(torch.cat(residuals), torch.cat(seen))
    model.train(was_training)


def default_card(model: Forecaster) -> str:
    """The card of a model folder in the Hugging Face format, from what the model itself knows."""
    data = model.training_data
    parameters = sum(p.numel() for p in model.parameters())
    lines = [
        "---",
        "library_name: tsfm-suite",
        "pipeline_tag: time-series-forecasting",
        "tags: [time-series, forecasting]",
        "---",
        "",
        f"# {model.model_type}, {model.context} steps in, {model.horizon} steps out",
        "",
        f"{parameters:,} parameters. "
        + ("Point forecasts with split-conformal intervals." if model.conformal is not None else "Quantile forecasts."),
    ]
    if data is not None:
        names = ", ".join(data.variates[:10]) + (", ..." if len(data.variates) > 10 else "")
        lines.append(f"Trained on {data.source} (frequency {data.freq}; {len(data.variates)} variates: {names}).")
    if model.finetuning is not None:
        lines.append(finetuning_line(asdict(model.finetuning)))
    if model.pretraining is not None:
        lines += pretraining_lines(model.pretraining)
    lines += ["", "    tsfm forecast INPUT --horizon H --model THIS_FOLDER", ""]
    return "\n".join(lines)


def finetuning_line(facts: Mapping[str, Any]) -> str:
    """The part of a card that says from which model, how and on which data a model was fine-tuned."""
    return (
        f"Fine-tuned from {facts['base']} by method {facts['method']}, {facts['steps']:,} steps, on data of SHA-256 "
        f"{facts['data_sha256']} (values, times and names of the series as read)."
    )


def pretraining_lines(facts: Pretraining) -> list[str]:
    """The part of a card that says what a model was pretrained on."""
    seen = f"{facts.steps:,} steps over {facts.batches:,} batches"
    if facts.observations is not None:
        seen += f" ({facts.observations:,} observations)"
    lines = [f"Pretrained for {seen}; seed {facts.seed} of the batches, {facts.global_seed} of the weights."]
    if facts.corpus is None:
        lines.append("All series were generated.")
    else:
        lines += [f"Corpus {facts.corpus}, manifest.json of SHA-256 {facts.manifest_sha256}.", ""]
        lines += [f"- trained on: {', '.join(facts.sources) or 'none'}"]
        lines += [f"- held out: {', '.join(facts.held_out) or 'none'}"]
    return lines if facts.command is None else [*lines, "", f"    {facts.command}"]
