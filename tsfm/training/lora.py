"""Low-rank updates of the weights of any model, by peft."""

import re
from collections.abc import Callable

from torch import nn

from tsfm_data.errors import InputError


def add_updates(model: nn.Module, rank: int, is_head: Callable[[str], bool]) -> None:
    """Add low-rank updates (Hu et al. 2021), initially 0, to the linear layers and 1 x 1 convolutions of the blocks.

    Args:
        model: that is changed.
        rank: of the updates.
        is_head: whether a layer belongs to the head, by its name; heads have no updates.

    Raises:
        InputError: peft is not installed, or the model has no blocks.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model  # an extra, and slow
    except ImportError as error:
        raise InputError("expected peft for method lora, found none: pip install peft, or use full or head") from error
    linear = [name for name, part in model.named_modules() if is_linear(part)]
    inside = [name for name in linear if re.search(r"\.\d+\.", name) and not is_head(name)]
    if not inside:
        found = type(model).__name__
        raise InputError(f"expected a model of blocks for method lora, found none in {found}: use full or head")
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=inside), model)


def is_linear(part: nn.Module) -> bool:
    """Whether a module maps the channels of each token or pixel by a matrix."""
    if isinstance(part, nn.Conv2d):
        return part.kernel_size == (1, 1) and part.groups == 1
    return isinstance(part, nn.Linear)


def merge(model: nn.Module) -> None:
    """Add the low-rank updates to their weights and remove their layers."""
    for name, part in list(model.named_modules()):
        if hasattr(part, "get_base_layer"):
            part.merge()
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, part.get_base_layer())
