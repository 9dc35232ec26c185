"""Forecasters small enough for a test below a second."""

import torch

from tsfm.models.zeroshot.encoder import ZeroShotEncoder
from tsfm.models.zeroshot.recipe import ZeroShotConfig

SIZES = {
    "chronos-bolt": {
        "d_model": 16,
        "d_ff": 16,
        "d_kv": 8,
        "heads": 2,
        "layers": 1,
        "decoder_layers": 1,
        "patch_size": 8,
    },
    "chronos2": {"d_model": 16, "d_ff": 16, "d_kv": 8, "heads": 2, "layers": 1, "patch_size": 4, "time_scale": 24},
    "decoder": {"d_model": 16, "patch_size": 4},  # a horizon of two patches
    "encoder": {"d_model": 16, "patch_size": 4},
    "itransformer": {"d_model": 16, "d_ff": 16, "heads": 2},
    "moirai2": {"d_model": 16, "d_ff": 16, "layers": 1, "heads": 2, "patch_size": 4, "predict_tokens": 1},
    "zeroshot-decoder": {"d_model": 16, "layers": 1, "heads": 2, "patch_size": 4, "predict_patches": 2},
    "zeroshot-encoder": {"d_model": 16, "layers": 1, "heads": 2, "patch_size": 4},
    "moirai": {"d_model": 16, "layers": 1, "heads": 2, "patch_sizes": (4, 8), "patch_size": 4},
}


def tiny() -> ZeroShotEncoder:
    torch.manual_seed(0)
    return ZeroShotEncoder(32, 8, ZeroShotConfig(d_model=16, layers=1, heads=2, patch_size=8)).eval()
