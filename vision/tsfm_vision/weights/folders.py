"""Image models by name, and in folders that timm reads too: ``config.json``, ``model.safetensors``, ``README.md``."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import timm
import torch
from annotated_types import Ge, Gt, Le, MinLen
from safetensors import SafetensorError
from safetensors.torch import save_file
from timm.data import resolve_model_data_config
from timm.models._hub import save_config_for_hf
from torch import nn
from typing_extensions import TypedDict

from tsfm.weights import check_file, check_shapes, layout, limited_construction, read_safetensors
from tsfm_data.errors import LARGEST_SIZE, LIBRARY_ERRORS, InputError, reason_of, shown, unknown_name
from tsfm_data.images import CHANNELS
from tsfm_data.io import atomic_folder, check_record, read_record
from tsfm_vision.weights.seen import Seen

# What a data config may say of a model's images.
PREPROCESSING = ("mean", "std", "crop_pct", "crop_mode", "interpolation")
FILES = ("config.json", "model.safetensors")
NOT_SIZES = ("pretrained", "checkpoint", "cache", "features")  # beginnings of arguments that lead to other files

Means = Annotated[list[Annotated[float, Ge(-1000), Le(1000)]], MinLen(1)]
Deviations = Annotated[list[Annotated[float, Gt(0), Le(1000)]], MinLen(1)]
Side = Annotated[int, Ge(1), Le(2048)]  # pixels


class Preprocessing(TypedDict, total=False):
    """The part of a timm config that says what a model takes."""

    input_size: tuple[Annotated[int, Ge(1), Le(4)], Side, Side]
    mean: Means
    std: Deviations
    crop_pct: Annotated[float, Gt(0), Le(10)] | None
    crop_mode: Literal["center", "squash", "border"] | None
    interpolation: Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]  # in evaluation, too
    label_names: list[str] | None
    num_classes: Annotated[int, Ge(0), Le(LARGEST_SIZE)]


class ImageConfig(Preprocessing):
    """The content of ``config.json``; in old files the keys of ``pretrained_cfg`` are at the top level."""

    architecture: str


class NewImageConfig(ImageConfig, total=False):
    """The content of ``config.json`` of the present layout."""

    model_args: dict[str, Any]
    pretrained_cfg: Preprocessing


@dataclass(frozen=True)
class TrainedOn:
    """What a model was trained on.

    Attributes:
        source: name of the data set.
        classes: names of its classes.
        images: number of training images.
        seen: which images it has seen.
    """

    source: str
    classes: tuple[str, ...]
    images: int
    seen: Seen = field(default_factory=Seen)


def create(
    model: str,
    num_classes: int,
    img_size: int | None,
    in_chans: int,
    model_args: dict[str, Any],
    preprocessing: dict[str, Any],
) -> nn.Module:
    """A model of timm by its name, made for images of this size and preprocessing.

    Raises:
        InputError: no such model (near names are listed), or sizes that it does not take.
    """
    if not timm.is_model(model):
        raise unknown_name("image model", model, timm.list_models())
    if in_chans not in CHANNELS:
        raise InputError(f"expected in_chans of an image, 1 to 4, found {in_chans}: change it")
    for key in preprocessing:
        if key not in PREPROCESSING:
            raise unknown_name("key of preprocessing", key, PREPROCESSING)
    check_record(preprocessing, Preprocessing, "preprocessing", "that of timm's models", hint="change it")
    own = timm.get_pretrained_cfg(model)
    overlay: dict[str, Any] = dict(preprocessing)
    for key in ("mean", "std"):
        values = tuple(overlay.get(key) or (getattr(own, key, None) or (0.5,)))
        overlay[key] = values if len(values) == in_chans else (sum(values) / len(values),) * in_chans
    size = img_size or (own.input_size[1] if own else 224)
    overlay |= {"input_size": (in_chans, size, size), "test_input_size": None}
    arguments = {"num_classes": num_classes, "in_chans": in_chans, "pretrained_cfg_overlay": overlay, **model_args}
    net = _make(model, img_size, arguments)
    if not _takes(net, size, size):
        known = [side for side in _sides(size) if _makes(model, side, arguments)]
        raise InputError(
            f"expected an img_size that {model} takes, found {size}: give {' or '.join(map(str, known)) or 'another'}"
        )
    return net


def _make(model: str, img_size: int | None, arguments: dict[str, Any]) -> nn.Module:
    try:
        try:
            return timm.create_model(model, img_size=img_size, **arguments)
        except TypeError as error:  # a convolutional model takes any size and does not know the word
            if "img_size" not in str(error):
                raise
            return timm.create_model(model, **arguments)
    except InputError:
        raise
    except LIBRARY_ERRORS as error:
        raise InputError(
            f"expected sizes that {model} takes, found others ({reason_of(error)}): change model_args"
        ) from error


def _makes(model: str, side: int, arguments: dict[str, Any]) -> bool:
    """Whether a model can be made for images of this side, and takes them."""
    try:
        return _takes(_make(model, side, arguments), side, side)
    except InputError:
        return False


def _sides(side: int) -> list[int]:
    """Sides that most models take, near one that a model does not: multiples of 32."""
    below = max(32, side // 32 * 32)
    return [below, below + 32]


def data_config(model: nn.Module) -> dict[str, Any]:
    """What a model takes: input_size, mean, std, interpolation, crop_pct and crop_mode, by timm's names."""
    return resolve_model_data_config(model)


def save(model: nn.Module, folder: str | Path, trained_on: TrainedOn | None = None, card: str | None = None) -> None:
    """Write a model folder, whole or not at all.

    Args:
        model: made by ``timm.create_model``.
        folder: where; an older one is replaced.
        trained_on: names of the classes and where they come from.
        card: text of ``README.md``; by default one made from the model's own facts.
    """
    more: dict[str, Any] = {}
    if trained_on is not None:
        more = {
            "label_names": list(trained_on.classes),
            "training_data": {"source": trained_on.source, "images": trained_on.images},
        }
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    with atomic_folder(folder) as temporary:
        save_config_for_hf(model, str(temporary / "config.json"), more)
        try:
            save_file(state, temporary / "model.safetensors", metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"{error} while writing {folder}") from error
        (temporary / "README.md").write_text(card or default_card(model, trained_on))
        if trained_on is not None:
            trained_on.seen.save(temporary)


def load(folder: str | Path) -> tuple[nn.Module, tuple[str, ...]]:
    """Read a model folder, or the folder of a run that holds one.

    Returns:
        The model in evaluation mode, and the names of its classes (their numbers if there are no names).

    Raises:
        InputError: a file is missing, is not what it says, or does not fit the others.
    """
    path = inner(folder)
    for name in FILES:
        if not (path / name).is_file():
            raise InputError(
                f"expected {name} in the model folder {path}, found none: is it the folder 'model' of a run?"
            )
        check_file(path / name)
    config, weights = read_config(path / FILES[0]), path / FILES[1]
    name, found = config["architecture"], layout(weights)
    if not timm.is_model(name):
        raise unknown_name(f"image model in {path / FILES[0]}", name[:60], timm.list_models())

    def build() -> Any:
        return timm.create_model(f"local-dir:{path}", pretrained=False)

    try:
        check_shapes(build, found, weights)
    except InputError as error:
        if "meta" not in str(error.__cause__):  # some models of timm compute with values while they are built
            raise
    with limited_construction(found, weights):
        model: Any = build()
    try:
        model.load_state_dict(read_safetensors(weights))
    except RuntimeError as error:
        raise InputError(f"{weights}: expected the weights of {name}, found others ({reason_of(error)})") from error
    height, width = data_config(model)["input_size"][1:]
    # If no size near it is taken either, the own size of a converted model is not known here.
    try:
        if not _takes(model, height, width) and sizes_near(model, height, width):
            check_size(model, height, width)
    except InputError as error:
        raise InputError(f"{path / FILES[0]}, input_size: {error}") from error
    except LIBRARY_ERRORS as error:  # of no image size: an argument of another type, for instance
        raise InputError(
            f"{path / FILES[0]}: expected model_args of {name}, found others ({reason_of(error)})"
        ) from error
    classes = tuple(model.pretrained_cfg.get("label_names") or map(str, range(model.num_classes)))
    if len(classes) != model.num_classes:
        raise InputError(
            f"{path / FILES[0]}: expected names of {model.num_classes:,} classes, found {len(classes):,}: get it again"
        )
    return model.eval(), classes


def inner(folder: str | Path) -> Path:
    """The model folder itself: this one, or ``model`` in the folder of a run."""
    path = Path(folder)
    return path / "model" if not (path / FILES[0]).is_file() and (path / "model" / FILES[0]).is_file() else path


def seen_by(folder: str | Path) -> Seen:
    """Which images the model of a folder has seen; none are known if its folder does not say.

    Raises:
        InputError: the file that says it is corrupt.
    """
    return Seen.load(inner(folder))


def read_config(file: Path) -> NewImageConfig:
    """The ``config.json`` of an image model, whose arguments are plain sizes within bounds.

    Raises:
        InputError: it is none, or names other files.
    """
    what = "the config.json of an image model"
    if not isinstance(read_record(file, dict, what, finite=False).get("architecture"), str):
        raise InputError(f"expected the key 'architecture' of an image model in {file}, found none: give such a folder")
    config = read_record(file, NewImageConfig, what)
    arguments, images = config.get("model_args", {}), config.get("pretrained_cfg", config)
    check_arguments(arguments, f"{file}, model_args")
    taken = images["input_size"][0] if "input_size" in images else 3
    channels = arguments.get("in_chans", taken)
    for key, known in (("mean", (1, channels)), ("std", (1, channels)), ("input_size", (channels,))):
        count = taken if key == "input_size" else len(images.get(key, [0]))  # type: ignore[arg-type]
        if count not in known:
            raise InputError(
                f"{file}: expected {key} of {channels} channels, found {count}: correct it, or get it again"
            )
    return config


def check_arguments(arguments: Mapping[str, Any], where: str) -> None:
    """Check that the arguments of a model are plain sizes of at most a million, and names.

    Raises:
        InputError: one is not, or leads to another file.
    """
    for key, value in arguments.items():
        if key.startswith(NOT_SIZES) or not _is_size(value):
            raise InputError(
                f"{where}: expected sizes of at most {LARGEST_SIZE:,}, found {key} = {shown(value)}: leave it out"
            )


def _is_size(value: object) -> bool:
    if isinstance(value, list | tuple | dict):
        return len(value) <= 100 and all(map(_is_size, value.values() if isinstance(value, dict) else value))
    if isinstance(value, int | float):
        return math.isfinite(value) and abs(value) <= LARGEST_SIZE
    return value is None or isinstance(value, str)


def default_card(model: Any, trained_on: TrainedOn | None) -> str:
    """The card of a model folder in the Hugging Face format, from what is known of the model."""
    parameters = sum(p.numel() for p in model.parameters())
    config = data_config(model)
    channels, height, width = config["input_size"]
    name = model.pretrained_cfg.get("architecture", type(model).__name__)
    lines = [
        "---",
        "library_name: timm",
        "pipeline_tag: image-classification",
        "tags: [image-classification, timm]",
        "---",
        "",
        f"# {name}, {height} x {width} pixels, {channels} channel{'s' if channels > 1 else ''}",
        "",
        f"{parameters:,} parameters, {model.num_classes} classes.",
    ]
    if trained_on is not None:
        shown = ", ".join(trained_on.classes[:10]) + (", ..." if len(trained_on.classes) > 10 else "")
        lines.append(f"Trained on {trained_on.images:,} images of {trained_on.source} (classes: {shown}).")
    lines += ["", "    tsfm image predict IMAGES --model THIS_FOLDER", ""]
    return "\n".join(lines)


def check_size(model: nn.Module, height: int, width: int) -> None:
    """Check that a model takes images of a size, by one pass.

    Raises:
        InputError: it does not; sizes that it takes are listed.
    """
    if _takes(model, height, width):
        return
    known = ", ".join(sizes_near(model, height, width)) or "no other near it"
    raise InputError(
        f"expected an image size that the model takes, found {height} x {width}: it takes {known}; change the size, or "
        "create the model with another img_size"
    )


def sizes_near(model: nn.Module, height: int, width: int) -> list[str]:
    """Sizes near this one, and the model's own, that it takes."""
    own = data_config(model)["input_size"][1:]
    candidates = dict.fromkeys([(own[0], own[1]), *((side, side) for side in _sides(max(height, width)))])
    return [f"{a} x {b}" for a, b in candidates if _takes(model, a, b)]


@torch.inference_mode()
def _takes(model: nn.Module, height: int, width: int) -> bool:
    training = model.training
    like = next(model.parameters())
    try:
        model.eval()(like.new_zeros(1, data_config(model)["input_size"][0], height, width))
    except (RuntimeError, AssertionError, ValueError):
        return False
    finally:
        model.train(training)
    return True
