"""Attention maps, common corruptions, and segmentation on feature pyramids at odd image sizes."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import timm
import torch
from segmentation import SHAPES, Segmenter, mean_iou, train_shapes

import tsfm_vision  # noqa: F401
from tsfm_data.errors import InputError
from tsfm_vision.evaluation import CORRUPTIONS, corrupt, look, tnt_rollout

TOKENS: dict[str, Any] = {"img_size": 96, "patch_size": 8, "embed_dim": 48}
PYRAMID: dict[str, Any] = {"dims": (24, 32, 48, 64), "depths": (1, 1, 1, 1)}
SMALL: dict[str, dict[str, Any]] = {
    "tsfm_poolformer_s12": PYRAMID,
    "tsfm_tnt_s_patch16_224": {**TOKENS, "inner_dim": 8, "depth": 3, "num_heads_outer": 3, "num_heads_inner": 2},
    "illama_tiny": {**TOKENS, "depth": 3, "num_heads": 3},
    "biformer_tiny": {**PYRAMID, "head_dim": 8, "n_win": 3, "topks": (1, 4, 9, -2)},
    "vit_tiny_patch16_224": {**TOKENS, "depth": 2, "num_heads": 3},
}


@pytest.mark.parametrize("name", SMALL)
def test_when_a_model_is_looked_into_then_each_image_has_a_map_of_its_own(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **SMALL[name]).eval()
    x = torch.randn(3, 3, 96, 96)
    title, maps = look(model, x)
    assert title
    assert maps.shape == (3, 96, 96)
    assert (maps.amin((1, 2)) == 0).all()
    assert maps.amax((1, 2)).tolist() == pytest.approx([1, 1, 1])
    alone = look(model, x[1:2])[1]
    torch.testing.assert_close(alone[0], maps[1], atol=2e-3, rtol=0)


def test_when_attention_is_rolled_out_then_shares_of_patches_and_class_token_sum_to_one() -> None:
    model = timm.create_model("tsfm_tnt_s_patch16_224", **SMALL["tsfm_tnt_s_patch16_224"]).eval()
    flow = tnt_rollout(model, torch.randn(2, 3, 96, 80))
    assert flow.shape == (2, 12, 10)
    assert (flow > 0).all()
    assert (flow.sum((1, 2)) < 1 - 0.5**3 + 1e-5).all()  # each block keeps at least half of the class token


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_when_images_are_corrupted_then_they_differ_more_with_severity(kind: str) -> None:
    y, x = np.mgrid[:48, :40]
    image = torch.from_numpy(0.5 + 0.3 * np.sin(x / 3) * np.cos(y / 4)).float().expand(2, 3, 48, 40)
    errors = []
    for severity in range(1, 6):
        out = corrupt(image, kind, severity, torch.Generator().manual_seed(0))
        assert out.shape == image.shape
        assert 0 <= out.min() <= out.max() <= 1
        errors.append(float((out - image).square().mean()))
    assert all(b > 0.6 * a for a, b in pairwise(errors))  # pixels that fall between others may come out better
    assert errors[4] > 1.5 * errors[0]
    assert errors[0] > 1e-6


def test_when_a_corruption_is_unknown_then_near_names_are_listed() -> None:
    with pytest.raises(InputError, match=r"unknown corruption 'blurr': did you mean blur"):
        corrupt(torch.zeros(1, 3, 8, 8), "blurr", 1, torch.Generator())
    with pytest.raises(InputError, match="severity from 1 to 5, found 6"):
        corrupt(torch.zeros(1, 3, 8, 8), "blur", 6, torch.Generator())


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SMALL)[:4])
def test_when_a_pyramid_is_trained_on_shapes_at_an_odd_size_then_it_finds_them(name: str) -> None:
    torch.manual_seed(0)
    model = Segmenter(name, len(SHAPES), **SMALL[name])
    assert train_shapes(model, 80, 97, 131, batch=4) > 0.33  # background alone: 0.2


def test_when_pixels_are_compared_then_the_mean_is_over_classes_that_occur() -> None:
    predicted, labels = torch.tensor([[[0, 0, 1, 1]]]), torch.tensor([[[0, 1, 1, 1]]])
    assert mean_iou(predicted, labels, 3) == pytest.approx((1 / 2 + 2 / 3) / 2)
