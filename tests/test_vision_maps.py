"""Attention maps."""

from typing import Any

import pytest
import timm
import torch

import tsfm_vision  # noqa: F401
from tsfm_data.errors import InputError
from tsfm_vision.evaluation import look, tnt_rollout
from tsfm_vision.evaluation.maps import gradient_map, routed

TOKENS: dict[str, Any] = {"img_size": 96, "patch_size": 8, "embed_dim": 48}
PYRAMID: dict[str, Any] = {"dims": (24, 32, 48, 64), "depths": (1, 1, 1, 1)}
SMALL: dict[str, dict[str, Any]] = {
    "tsfm_poolformer_s12": PYRAMID,
    "tsfm_tnt_s_patch16_224": {**TOKENS, "inner_dim": 8, "depth": 3, "num_heads_outer": 3, "num_heads_inner": 2},
    "illama_tiny": {**TOKENS, "depth": 3, "num_heads": 3},
    "biformer_tiny": {**PYRAMID, "head_dim": 8, "n_win": 3, "topks": (1, 4, 9, -2)},
    "vit_tiny_patch16_224": {**TOKENS, "depth": 2, "num_heads": 3},
    "ptnt_ti_patch16_192": {"img_size": 96, "depths": (1, 2, 1, 1)},
    "swin_tiny_patch4_window7_224": {
        "img_size": 96,
        "embed_dim": 24,
        "depths": (1, 1, 1),
        "num_heads": (1, 2, 2),
        "window_size": 3,
    },
    "hiera_tiny_224": {"img_size": 96, "embed_dim": 24, "stages": (1, 1, 1, 1), "num_heads": 1},
    "xcit_nano_12_p16_224": {"img_size": 96, "embed_dim": 24, "depth": 2, "num_heads": 2},
    "cait_xxs24_224": {"img_size": 96, "embed_dim": 24, "depth": 2, "num_heads": 2},
    "mixer_s32_224": {"img_size": 96},
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 16, 16, 32)},
    "resnet10t": {},
}


@pytest.mark.parametrize("name", SMALL)
def test_when_a_model_is_looked_into_then_each_image_has_a_map_of_its_own(name: str) -> None:
    torch.manual_seed(0)
    model: Any = timm.create_model(name, num_classes=5, **SMALL[name]).eval()
    torch.nn.init.normal_(model.get_classifier().weight)  # some of timm's begin with zeros, which have no gradient
    x = torch.randn(3, 3, 96, 96)
    found, alone = look(model, x), look(model, x[1:2])
    assert len(found) == (2 if name == "biformer_tiny" else 1)
    for title, maps in found.items():
        assert maps.shape == (3, 96, 96)
        assert (maps.amin((1, 2)) == 0).all()
        # Grad-CAM of an untrained network may have no positive part.
        assert all(value in (0, pytest.approx(1)) for value in maps.amax((1, 2)).tolist())
        assert maps.any()
        assert not torch.equal(maps[0], maps[1])
        torch.testing.assert_close(alone[title][0], maps[1], atol=2e-3, rtol=0)


def test_when_features_lie_channels_last_then_grad_cam_is_that_of_the_same_features_by_hand() -> None:
    torch.manual_seed(0)
    name = "swin_tiny_patch4_window7_224"
    model = timm.create_model(name, num_classes=5, **SMALL[name]).eval()
    x, kept = torch.randn(2, 3, 96, 96), []
    hook = model.layers[-1].register_forward_hook(lambda _, __, out: kept.append(out))
    logits = model(x)
    hook.remove()
    (gradient,) = torch.autograd.grad(logits.amax(1).sum(), kept[0])
    expected = (kept[0] * gradient.mean((1, 2), keepdim=True)).sum(3).relu()
    torch.testing.assert_close(gradient_map(model, x), expected)


def test_when_biformer_is_looked_into_then_weights_of_each_images_own_routes_in_the_last_block_are_shown() -> None:
    torch.manual_seed(0)
    sizes = {**SMALL["biformer_tiny"], "depths": (1, 1, 11, 1), "topks": (1, 4, 4, -2)}
    model, x = timm.create_model("biformer_tiny", **sizes).eval(), torch.randn(2, 3, 96, 96)
    regions = routed(model, x)
    assert regions is not None
    share, index = model.routes(x)["stages.2.blocks.10.attn"]
    for image in range(2):
        expected = torch.zeros(9, 9)
        for start in range(9):
            for weight, end in zip(share[image, start], index[image, start], strict=True):
                expected[start, end] = weight
        torch.testing.assert_close(regions[0][image].flatten(), expected.mean(0))
        torch.testing.assert_close(regions[1][image].flatten(), expected[4])


@pytest.mark.parametrize("name", ["one place", "not of timm"])
def test_when_a_model_has_no_map_then_it_is_refused_in_one_line(name: str) -> None:
    model: torch.nn.Module = torch.nn.Linear(2, 2)
    if name == "one place":
        model = timm.create_model("vit_tiny_patch16_224", img_size=16, depth=2).eval()
    with pytest.raises(
        InputError, match="expected a model with maps that timm's forward_intermediates gives"
    ) as caught:
        look(model, torch.randn(1, 3, 16, 16))
    assert "\n" not in str(caught.value)


def test_when_attention_is_rolled_out_then_shares_of_patches_and_class_token_sum_to_one() -> None:
    model = timm.create_model("tsfm_tnt_s_patch16_224", **SMALL["tsfm_tnt_s_patch16_224"]).eval()
    flow = tnt_rollout(model, torch.randn(2, 3, 96, 80))
    assert flow.shape == (2, 12, 10)
    assert (flow > 0).all()
    assert (flow.sum((1, 2)) < 1 - 0.5**3 + 1e-5).all()  # each block keeps at least half of the class token
