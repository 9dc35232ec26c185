"""Published image checkpoints as model folders, for ``tsfm weights convert``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from tsfm_data.errors import LIBRARY_ERRORS, InputError, reason_of, unknown_name
from tsfm_vision.backbones import family_of, fitting, load_state
from tsfm_vision.weights.folders import check_arguments, save

# Family -> patterns of the variants written here.
VARIANTS = {
    "PoolFormer": ["tsfm_poolformer_*", "metaformer_*"],
    "TNT": ["tnt_ti_*", "tsfm_tnt_*"],
    "PyramidTNT": ["ptnt_*"],
    "iLLaMA": ["illama_*"],
    "BiFormer": ["biformer_*"],
}
HEADS = ("head.bias", "head.fc.bias")


def convert(
    state: dict[str, Tensor],
    config: Mapping[str, Any],
    file: Path,
    folder: Path,
    architecture: str | None,
    card: str,
) -> tuple[str, str]:
    """Write a model folder with the weights of a published image checkpoint.

    Args:
        state: its tensors.
        config: ``config.json`` next to it, of which "architecture" and "model_args" are used, or empty.
        file: its path, for errors.
        folder: folder to write; an older one is replaced.
        architecture: name of the variant; by default the one in the config, or the one whose shapes fit.
        card: text of ``README.md``.

    Returns:
        The family, and the variant and its classes in words.

    Raises:
        InputError: no variant fits.
    """
    family = family_of(state)
    if family is None or family not in VARIANTS:
        raise InputError(
            f"expected a checkpoint of {', '.join(VARIANTS)} in {file}, found one of {family}: timm reads it itself"
        )
    classes = next((len(state[key]) for key in HEADS if key in state), 0)
    arguments = config.get("model_args") or {}
    name = architecture or config.get("architecture")
    name = variant(state, family, classes, file) if name is None else str(name)
    model = create(name, family, classes, arguments)
    save(load_state(model, state, file), folder, card=card)
    return family, f"variant {name}, {classes:,} classes"


def create(name: str, family: str, classes: int, arguments: Mapping[str, Any]) -> nn.Module:
    """A variant of a family, of these sizes.

    Raises:
        InputError: no such variant, or sizes that it does not take.
    """
    known = timm.list_models(VARIANTS[family])
    if name not in known:
        raise unknown_name(f"variant of {family}", name, known)
    check_arguments(arguments, "model_args")
    try:
        return timm.create_model(name, num_classes=classes, **arguments)
    except LIBRARY_ERRORS as error:
        reason = reason_of(error)
        raise InputError(f"expected sizes that {name} takes, found others ({reason}): change model_args") from error


def variant(state: dict[str, Tensor], family: str, classes: int, file: Path) -> str:
    """The variant whose tensors have these shapes. If several fit (position tables are resized), the nearest in size.

    Raises:
        InputError: none.
    """
    numbers = sum(tensor.numel() for tensor in state.values())
    fits: dict[str, int] = {}
    reason: InputError | None = None
    for name in timm.list_models(VARIANTS[family]):
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=classes)
        try:
            fitting(model, state, file)
        except (InputError, RuntimeError) as error:
            reason = error if isinstance(error, InputError) else reason
            continue
        fits[name] = abs(sum(tensor.numel() for tensor in model.state_dict().values()) - numbers)
    if not fits:
        raise InputError(
            f"expected the shapes of a published {family} in {file}, found others: give a config.json next to it with "
            '{"architecture": ..., "model_args": {...}}'
        ) from reason
    return min(fits, key=lambda name: fits[name])
