"""Compiles tiny backbones with TorchScript and prints how far the compiled ones are from them, in shares of the largest
output: run by a test in a process of its own, for the checks of shapes in tests are nothing that TorchScript reads.
"""

import io
import warnings
from typing import Any

import timm
import torch

import tsfm_vision  # noqa: F401 - registers the models

SIDE = 64
BIFORMER: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (16, 16, 32, 32), "head_dim": 8}
POOLFORMER: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}
TNT: dict[str, Any] = {"depth": 2, "embed_dim": 24, "num_heads_outer": 2, "img_size": SIDE}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "poolformer": ("tsfm_poolformer_s12", POOLFORMER),
    "poolformer, timm's head": ("tsfm_poolformer_s12", {**POOLFORMER, "norm_first": False}),
    "attention mixers": ("metaformer_ppaa_s12_224", {"depths": (1, 1, 1, 1), "dims": (32, 32, 32, 32)}),
    "tnt": ("tnt_ti_patch16_224", TNT),
    "legacy tnt": ("tsfm_tnt_s_legacy_patch16_224", {**TNT, "inner_dim": 8}),
    "gated tnt": ("tnt_ti_patch16_224", {**TNT, "gated": True}),
    "pyramid tnt": ("ptnt_ti_patch16_192", {"depths": (1, 2, 1, 1), "img_size": SIDE}),
    "illama": ("illama_tiny", {"depth": 2, "embed_dim": 24, "img_size": SIDE}),
    "biformer": ("biformer_tiny", BIFORMER),
    "biformer, newer": ("biformer_stl_nchw", BIFORMER),
    "biformer, soft": ("biformer_tiny", {**BIFORMER, "soft_routing": True}),
}


def main() -> None:
    """One line a model and size: name, size and difference, with tabs between."""
    warnings.simplefilter("ignore")  # PyTorch would rather have models exported
    for name, (variant, sizes) in MODELS.items():
        torch.manual_seed(0)
        model: Any = timm.create_model(variant, num_classes=5, **sizes).eval()
        if name == "illama":
            model.soft_mask_rate = 0.3
        file = io.BytesIO()
        torch.jit.save(torch.jit.script(model), file)
        file.seek(0)
        compiled = torch.jit.load(file)
        for size in (SIDE, SIDE + 32):
            x = torch.randn(2, 3, size, size)
            with torch.no_grad():
                expected, output = model(x), compiled(x)
            print(name, size, float((output - expected).abs().max() / expected.abs().max()), sep="\t")


if __name__ == "__main__":
    main()
