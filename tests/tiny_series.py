"""Forecasters small enough for a test below a second."""

import torch

from tsfm.models.zeroshot.encoder import ZeroShotEncoder
from tsfm.models.zeroshot.recipe import ZeroShotConfig


def tiny() -> ZeroShotEncoder:
    torch.manual_seed(0)
    return ZeroShotEncoder(32, 8, ZeroShotConfig(d_model=16, layers=1, heads=2, patch_size=8)).eval()
