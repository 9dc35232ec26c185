"""Image backbones small enough for a test below a second, one of every kind."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import tsfm_vision  # noqa: F401  registers the models

# One small model of every kind; sizes that keep a test below a second.
SMALL: dict[str, dict[str, Any]] = {
    "tsfm_poolformer_s12": {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32), "img_size": 64},
    "metaformer_ppff_s12_224": {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32), "img_size": 64},
    "metaformer_ppaa_s12_224": {"depths": (1, 1, 2, 1), "dims": (8, 16, 32, 64), "img_size": 64},
    "tsfm_tnt_s_patch16_224": {"depth": 4, "embed_dim": 32, "inner_dim": 8, "num_heads_outer": 4, "img_size": 64},
    "ptnt_ti_patch16_192": {
        "depths": (1, 2, 1, 1),
        "outer_dims": (16, 32, 32, 32),
        "inner_dims": (4, 8, 8, 8),
        "outer_heads": (2, 4, 4, 4),
        "inner_heads": (1, 2, 2, 2),
        "img_size": 64,
    },
    "illama_tiny": {"depth": 4, "embed_dim": 32, "num_heads": 2, "img_size": 64},
    "biformer_tiny": {"depths": (1, 1, 2, 1), "dims": (16, 24, 32, 48), "head_dim": 8, "img_size": 64},
    "biformer_stl": {"depths": (1, 1, 1, 1), "dims": (16, 24, 32, 48), "head_dim": 8, "img_size": 64},
    "biformer_stl_nchw": {"depths": (1, 1, 1, 1), "dims": (16, 24, 32, 48), "head_dim": 8, "img_size": 64},
}


every = pytest.mark.parametrize("name", SMALL)


def create(name: str, **kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **{**SMALL[name], "num_classes": 10, **kwargs}).eval()


def image(side: int = 64, channels: int = 3, batch: int = 2, width: int | None = None) -> Tensor:
    return torch.randn(batch, channels, side, width or side, generator=torch.Generator().manual_seed(1))
