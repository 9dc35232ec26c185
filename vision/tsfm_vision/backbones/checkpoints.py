"""Weights from elsewhere: unwrapped, recognised by their keys, and resized if they belong to another image size."""

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timm.layers import to_2tuple
from torch import Tensor, nn
from torch.nn import functional as F

from tsfm.weights import read_tensors
from tsfm_data.errors import InputError

State = dict[str, Tensor]
# The keys of weights inside a checkpoint of a training script; averaged weights come first.
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "module")
BACKBONE = "backbone."
# Family -> sets of keys; all keys of one set are in every checkpoint of the family and in no other's.
SIGNS: dict[str, tuple[tuple[str, ...], ...]] = {
    "PyramidTNT": (("sentence_merges.0.norm.weight", "word_merges.0.norm.weight"),),
    "TNT": (("inner_pos", "outer_pos"), ("pixel_pos", "patch_pos")),
    "iLLaMA": (("blocks.0.mlp.fc3.weight", "cls_token"),),
    "BiFormer": (("downsample_layers.0.0.weight", "downsample_layers.1.1.weight", "norm.running_mean"),),
    "PoolFormer": (
        ("patch_embed.proj.weight", "network.0.0.mlp.fc1.weight"),
        ("stem.conv.weight", "stages.0.blocks.0.mlp.fc1.weight"),
    ),
    "Swin": (("layers.0.blocks.0.attn.relative_position_bias_table",),),
    "ConvNeXt": (("stages.0.0.dwconv.weight",), ("stages.0.blocks.0.conv_dw.weight",)),
    "ResNet": (("layer1.0.conv1.weight",),),
    "ViT": (("blocks.0.attn.qkv.weight", "patch_embed.proj.weight"),),
}


def unwrap(checkpoint: Mapping[str, Any]) -> State:
    """The weights in a checkpoint, whether plain or under ``model``, ``state_dict`` and the like.

    Raises:
        InputError: there are no weights in it.
    """
    weights: Any = checkpoint
    for name in WRAPPERS:
        if isinstance(weights.get(name), Mapping):
            weights = weights[name]
            break
    state = {key.removeprefix("module."): value for key, value in weights.items() if isinstance(value, Tensor)}
    # Of a detector or segmenter, its backbone.
    inner = {key.removeprefix(BACKBONE): value for key, value in state.items() if key.startswith(BACKBONE)}
    state = inner or state
    if not state:
        raise InputError(
            f"expected a state dict, plain or under one of {', '.join(WRAPPERS)}, found the keys "
            f"{', '.join(map(str, list(checkpoint)[:5]))}: give the checkpoint of a model"
        )
    return state


def family_of(state: Mapping[str, Tensor]) -> str | None:
    """The family of models whose keys these are; ``None`` for one that is not known."""
    for family, signs in SIGNS.items():
        if any(all(key in state for key in sign) for sign in signs):
            return family
    return None


def recognise(checkpoint: Mapping[str, Any], family: str) -> State:
    """The weights in a checkpoint, checked to be of ``family``.

    Raises:
        InputError: they belong to another family, which is named, or there are none.
    """
    state = unwrap(checkpoint)
    actual = family_of(state)
    if actual != family:
        what = f"one of {actual}" if actual else f"an unknown one with the keys {', '.join(list(state)[:3])}"
        raise InputError(f"expected a checkpoint of {family}, found {what}: give the file that belongs to this model")
    return state


def resize_grid(table_1NC: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """A position table of a grid of tokens, resized to another: bicubic, without antialiasing, as in the originals."""
    if old == new:
        return table_1NC
    grid = table_1NC.float().unflatten(1, old).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=new, mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).flatten(1, 2).to(table_1NC.dtype)


def resize_map(table: Tensor, size: tuple[int, int]) -> Tensor:
    """A position map ``[1, C, H, W]``, resized to another size: bicubic, without antialiasing."""
    if (table.shape[2], table.shape[3]) == size:
        return table
    return F.interpolate(table.float(), size=size, mode="bicubic", align_corners=False).to(table.dtype)


def source_grid(model: nn.Module, rows: int, what: str, patch: Sequence[int]) -> tuple[int, int]:
    """The grid of tokens of a checkpoint's position table: that of the image size in its config, otherwise a square.

    Args:
        model: that the checkpoint is for; timm leaves in it what the config of the checkpoint says.
        rows: tokens of the table.
        what: name of the table, for errors.
        patch: rows and columns of pixels of a token.

    Raises:
        InputError: the config says no size that fits, and they form no square.
    """
    size = getattr(model, "pretrained_model_args", {}).get("img_size")
    if size is not None:
        height, width = to_2tuple(size)
        grid = (height // patch[0], width // patch[1])
        if grid[0] * grid[1] == rows:
            return grid
    side = math.isqrt(rows)
    if side * side != rows:
        raise InputError(
            f"expected {what} of a square grid of tokens, found {rows} rows: create the model with the img_size that "
            "the checkpoint was trained at"
        )
    return side, side


def load_weights(model: nn.Module, file: str | Path) -> nn.Module:
    """Load a checkpoint of the model's family: timm's layout, or that of the original implementation.

    A classifier for another number of classes is left as initialised; position tables are resized.

    Args:
        model: one of the models of this package.
        file: a safetensors file, or one of ``torch.save`` (nothing but tensors and plain values is read from it).

    Returns:
        The model.

    Raises:
        InputError: the file is corrupt, belongs to another family, or a tensor does not fit.
    """
    return load_state(model, read_tensors(Path(file)), Path(file))


def load_state(model: nn.Module, checkpoint: Mapping[str, Any], file: Path) -> nn.Module:
    """The same from what was read.

    Args:
        model: one of the models of this package.
        checkpoint: what the file holds.
        file: its path, for errors.

    Raises:
        InputError: it belongs to another family, or a tensor does not fit.
    """
    model.load_state_dict(fitting(model, checkpoint, file))
    return model


def fitting(model: nn.Module, checkpoint: Mapping[str, Any], file: Path) -> State:
    """The weights of a checkpoint by the names of a model, checked to fit it.

    Raises:
        InputError: see ``load_state``.
    """
    filter_fn = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if filter_fn is None or not type(model).__module__.startswith("tsfm_vision."):
        raise InputError(f"expected a model of this package, found {type(model).__name__}: see timm.list_models()")
    state: State = filter_fn(checkpoint, model)
    own = model.state_dict()
    classifier = (getattr(model, "pretrained_cfg", None) or {}).get("classifier", "head")
    for name in (f"{classifier}.weight", f"{classifier}.bias"):
        if name in state and (name not in own or state[name].shape != own[name].shape):
            del state[name]
        if name in own and name not in state:
            state[name] = own[name]
    wrong = sorted(
        key
        for key in own.keys() | state.keys()
        if key not in own or key not in state or own[key].shape != state[key].shape
    )
    if wrong:
        key = wrong[0]
        shapes = [tuple(side[key].shape) if key in side else "none" for side in (own, state)]
        raise InputError(
            f"expected tensor {key} of shape {shapes[0]}, found {shapes[1]} in {file} ({len(wrong)} differ): create "
            "the variant that the checkpoint belongs to"
        )
    return state
