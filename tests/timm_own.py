"""A pytest plugin that points timm's own tests of all its models at those that this package registers.

timm's file asks ``timm.list_models`` for names when it is imported; here it gets ours. Its tests of single models are
left out.
"""

import os
from fnmatch import fnmatch
from typing import Any

import pytest
import timm

import tsfm_vision  # noqa: F401  registers the models

# A pattern in timm's lists of models whose features are tokens and no maps.
TOKENS = "vit_*"
CHOSEN = os.environ.get("TIMM_MODELS", "*").split()
list_all = timm.list_models


def is_ours(name: str) -> bool:
    """Whether a name, with or without a tag of weights, is one of the chosen that this package registers."""
    name = name.partition(".")[0]
    ours = timm.is_model(name) and timm.model_entrypoint(name).__module__.startswith("tsfm_vision.")
    return ours and any(fnmatch(name, pattern) for pattern in CHOSEN)


def gives_tokens(name: str) -> bool:
    """Whether the last features of a model are tokens."""
    return timm.get_pretrained_cfg_value(name.partition(".")[0], "pool_size") is None


def list_ours(filter: Any = "", module: Any = "", exclude_filters: Any = "", **options: Any) -> list[str]:
    """Our names instead of timm's: of models that give tokens, of others, or of all."""
    names = [name for name in list_all(**options) if is_ours(name)]
    if filter:
        return [name for name in names if TOKENS in filter and gives_tokens(name)]
    return [name for name in names if TOKENS not in exclude_filters or not gives_tokens(name)]


timm.list_models = list_ours


def pytest_collection_modifyitems(config: pytest.Config, items: list[Any]) -> None:
    """Keep the tests that are made from a list of models."""
    kept = [
        item for item in items if hasattr(item, "callspec") and is_ours(str(item.callspec.params.get("model_name")))
    ]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
