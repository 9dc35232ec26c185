"""Converts published checkpoints to model folders; their kind is recognised by tensors and config.

Nothing in a checkpoint is executed: its config is read as plain values, and classes that it names (``_target_``) are
compared as text.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from torch import Tensor

from tsfm.models import MODELS, from_reference_state, model_class
from tsfm.weights.cards import foreign_card
from tsfm.weights.folders import Origin, digest, read_object, write_checksums
from tsfm.weights.pretrained import save
from tsfm.weights.tensors import check_file, read_tensors
from tsfm_data.errors import InputError, reason_of
from tsfm_data.plugins import entry_points, load

if TYPE_CHECKING:
    from torch import Tensor

    from tsfm.models import Forecaster, PackedForecaster

WEIGHTS = ("model.safetensors", "pytorch_model.bin", "*.safetensors", "*.ckpt", "*.pth", "*.pth.tar", "*.pt", "*.bin")
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
ATTENTION = "encoder.layers.0.self_attn.q_norm.weight"
# Known kinds that are not supported, by a key that no other kind has.
UNSUPPORTED = {
    "encoder.layers.0.ffn.experts.0.fc1.weight": "Moirai-MoE",
}


@dataclass(frozen=True)
class Options:
    """Settings that a checkpoint does not contain.

    Attributes:
        context: time steps of history; by default the published one, or 2048.
        horizon: time steps of one forward pass; by default the published one, or 96.
        heads: number of heads of an iTransformer.
        activation: activation function of an iTransformer.
        window_norm: "use_norm" of an iTransformer.
    """

    context: int | None = None
    horizon: int | None = None
    heads: int = 8
    activation: Literal["gelu", "relu"] = "gelu"
    window_norm: bool = True


@dataclass(frozen=True)
class Conversion:
    """Facts about a converted checkpoint.

    Attributes:
        family: the kind of model.
        files: the files of the checkpoint.
        parameters: number of parameters.
        facts: further facts for the user, as text.
    """

    family: str
    files: tuple[Path, ...]
    parameters: int
    facts: str


def convert(
    foreign: Path | Mapping[str, Path],
    folder: Path,
    *,
    name: str | None = None,
    family: str | None = None,
    architecture: str | None = None,
    origin: Origin | None = None,
    options: Options = Options(),
) -> Conversion:
    """Write a model folder with the weights of a published checkpoint.

    Args:
        foreign: a file of weights, a folder with one and perhaps a ``config.json``, or the files by name.
        folder: the folder to write; an older one is replaced.
        name: name of the model on its card.
        family: the expected kind of model; None accepts any.
        architecture: name of an image model; by default the variant whose shapes fit.
        origin: where the checkpoint comes from.
        options: settings that the checkpoint does not contain.

    Raises:
        InputError: the checkpoint is unsafe, corrupt, of an unknown kind, or not of the given family.
    """
    files = dict(foreign) if isinstance(foreign, Mapping) else locate(foreign)
    weights = next(path for file, path in files.items() if file != "config.json")
    config = read_object(files["config.json"]) if "config.json" in files else {}
    state = unwrap(read_tensors(weights), weights)
    parameters = sum(tensor.numel() for tensor in state.values())
    kind = recognise(state, config, weights)
    if family is not None and kind not in (family, "image"):
        raise InputError(f"expected a checkpoint of {family} in {weights}, found one of {kind}: give another file")
    name = name or folder.name
    origin = origin or Origin(name, "unknown", sha256={key: digest(path) for key, path in files.items()})
    if kind == "image":
        family, facts = image_converter().convert(
            state, config, weights, folder, architecture, foreign_card(name, "image", origin)
        )
        write_checksums(folder, origin)
        return Conversion(family, tuple(files.values()), parameters, facts)
    check_sizes(config, state, weights)
    model = build(kind, config, state, options)
    save(model, folder, foreign_card(name, "forecast", origin, model))
    write_checksums(folder, origin)
    facts = f"context {model.context}, horizon {model.horizon}, {model.config}"
    return Conversion(kind, tuple(files.values()), parameters, facts)


def locate(foreign: Path) -> dict[str, Path]:
    """The files of a checkpoint by name: the weights, and ``config.json`` if there is one.

    Raises:
        InputError: no file, several files of weights, or weights in several parts.
    """
    if not foreign.exists():
        raise InputError(f"expected a checkpoint at {foreign}, found nothing: check the path")
    if foreign.is_file():
        config_file = foreign.parent / "config.json"
        with_config = foreign.suffix in (".safetensors", ".bin") and config_file.is_file()
        files = {foreign.name: foreign} | ({"config.json": config_file} if with_config else {})
    else:
        if (foreign / "model.safetensors.index.json").exists():
            raise InputError(f"expected one file of weights in {foreign}, found several parts: join them first")
        for pattern in WEIGHTS:
            if matches := sorted(foreign.glob(pattern)):
                break
        else:
            raise InputError(f"expected a file of weights in {foreign}, found none of {', '.join(WEIGHTS)}: check it")
        if len(matches) > 1:
            raise InputError(f"expected one file of weights in {foreign}, found {len(matches)}: give one of them")
        files = {matches[0].name: matches[0]}
        if (foreign / "config.json").is_file():
            files["config.json"] = foreign / "config.json"
    for path in files.values():
        check_file(path)
    return files


def unwrap(content: Mapping[str, Any], file: Path) -> "dict[str, Tensor]":
    """The tensors of a checkpoint, at the top level or under ``state_dict``, ``model`` and the like.

    Raises:
        InputError: it has no tensors.
    """
    inner = next((content[name] for name in WRAPPERS if isinstance(content.get(name), Mapping)), content)
    state = {
        key.removeprefix("module."): value
        for key, value in inner.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }
    if not state:
        keys = ", ".join(map(str, list(content)[:5]))
        raise InputError(f"expected tensors in {file}, plain or under one of {', '.join(WRAPPERS)}, found: {keys}")
    return state


def recognise(state: "Mapping[str, Tensor]", config: Mapping[str, Any], file: Path) -> str:
    """The kind of model of a state dict: a model type of ours, or "image".

    Raises:
        InputError: a kind that is unknown or not supported.
    """
    for key, what in UNSUPPORTED.items():
        if key in state:
            raise InputError(f"expected a checkpoint of a known kind, found one of {what} in {file}: not supported")
    if "model_type" in config and "format_version" in config:
        raise InputError(
            f"expected a foreign checkpoint, found a model folder of ours at {file.parent}: use it as it is"
        )
    if "encoder.block.0.layer.0.self_attention.q.weight" in state:
        return "chronos2"
    if "chronos_config" in config or "input_patch_embedding.hidden_layer.weight" in state:
        return "chronos-bolt"
    if "shared.weight" in state:
        raise InputError(f"expected a checkpoint of a known kind, found a T5 (Chronos-T5?) in {file}: not supported")
    if ATTENTION in state and "in_proj.hidden_layer.weight" in state:
        return "moirai2"
    if ATTENTION in state and "in_proj.weight" in state:
        if state["in_proj.weight"].ndim == 3:
            return "moirai"
        return "encoder" if "mask_encoding.weight" in state else "decoder"
    if "enc_embedding.value_embedding.weight" in state:
        return "itransformer"
    try:
        family = image_converter().family_of(state)
    except InputError:
        family = None
    if family is None:
        keys = ", ".join(list(state)[:3])
        raise InputError(f"expected a checkpoint of a known kind in {file}, found the tensors {keys}: not supported")
    return "image"


def image_converter() -> Any:
    """The converter of image checkpoints, an object with ``family_of`` and ``convert``.

    Raises:
        InputError: no package provides it, or it cannot be imported.
    """
    entry = next((entry for entry in entry_points("tsfm.converters") if entry.name == "image"), None)
    if entry is None:
        raise InputError("expected the package of image models, found none: pip install 'tsfm-suite[vision]'")
    return load(entry, "image models")


def check_sizes(config: Mapping[str, Any], state: "Mapping[str, Tensor]", file: Path) -> None:
    """Compare the sizes in a foreign config with the file, before memory is allocated for them.

    Raises:
        InputError: a model of these sizes has more parameters than the file.
    """
    values = sum(tensor.numel() for tensor in state.values())
    sizes = {key: value for key, value in config.items() if isinstance(value, int) and not isinstance(value, bool)}
    width = sizes.get("d_model", 1)
    layers = max(sizes.get(key, 1) for key in ("num_layers", "num_decoder_layers"))
    needed: dict[str, int] = {key: width * layers * sizes[key] for key in ("d_model", "d_ff") if key in sizes}
    needed["num_heads"] = width * layers * sizes.get("num_heads", 1) * sizes.get("d_kv", 1)
    if "num_predict_token" in sizes:
        needed["num_predict_token"] = width * sizes["num_predict_token"] * sizes.get("patch_size", 1)
    patches = config.get("patch_sizes", [])
    if isinstance(patches, list) and all(isinstance(patch, int) for patch in patches):
        needed["patch_sizes"] = width * max(patches, default=1)
    for key, numbers in needed.items():
        if numbers > values:
            raise InputError(
                f"expected sizes of a model with {values:,} parameters, the number in {file.name}, found {key} = "
                f"{config.get(key)!r:.40}, which needs at least {numbers:,}: config and weights do not belong together"
            )
    own = config.get("chronos_config")
    lengths = own if isinstance(own, Mapping) else {}
    for key in ("context_length", "prediction_length", "input_patch_size", "max_output_patches"):
        value = lengths.get(key)
        if value is not None and not (isinstance(value, int) and 1 <= value <= 10**6):
            raise InputError(f"expected {key} from 1 to 1,000,000 in config.json, found {value!r:.40}: get it again")


def build(kind: str, config: dict[str, Any], state: "dict[str, Tensor]", options: Options) -> "Forecaster":
    """The model of a foreign checkpoint.

    Raises:
        InputError: config and tensors do not fit.
    """
    module: Any = importlib.import_module(MODELS[kind].split(":")[0])
    context, horizon = options.context or 2048, options.horizon or 96
    try:
        if kind in ("chronos-bolt", "chronos2"):
            return module.from_reference(config, state)
        if kind == "moirai":
            return module.from_reference(config, state, context, horizon, patch_size="auto")
        if kind == "moirai2":
            steps = options.horizon or int(config["num_predict_token"]) * int(config["patch_size"])
            return module.from_reference(config, state, context, steps)
        if kind == "itransformer":
            chosen = {"heads": options.heads, "activation": options.activation, "window_norm": options.window_norm}
            return module.from_reference_state(state, **chosen)
        return from_reference_state(cast("type[PackedForecaster]", model_class(kind)), state, context, horizon)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, RuntimeError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        reason = reason_of(error)
        raise InputError(
            f"expected config and tensors of {kind}, found other ones ({type(error).__name__}: {reason})"
        ) from error
