"""A small segmentation model on a backbone's feature pyramid, and shapes to train it on.

Shapes: B batch, C channels of the image, H and W its rows and columns, K classes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import timm
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from tsfm_data.errors import InputError

SHAPES = ("background", "disc", "square", "stripes")


class Segmenter(nn.Module):
    """Classes of pixels: every map of the pyramid is projected, enlarged to the finest and added (as in FPN heads,
    Kirillov et al., CVPR 2019), and one 3 x 3 convolution reads the sum.

    Args:
        backbone: timm's name of a model that has ``features_only``.
        classes: classes of a pixel.
        width: channels of the sum.
        backbone_args: sizes of the backbone, and ``out_indices``.
    """

    def __init__(self, backbone: str, classes: int, width: int = 64, **backbone_args: Any) -> None:
        super().__init__()
        self.backbone = timm.create_model(backbone, features_only=True, **backbone_args)
        channels: Sequence[int] = self.backbone.feature_info.channels()  # type: ignore[union-attr, operator, assignment]
        self.project = nn.ModuleList([nn.Conv2d(number, width, 1) for number in channels])
        self.read = nn.Sequential(
            nn.GroupNorm(8, width),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, classes, 1),
        )

    def forward(self, x_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K H W"]:
        maps = [layer(map_) for layer, map_ in zip(self.project, self.backbone(x_BCHW), strict=True)]
        size = max((tuple(map_.shape[2:]) for map_ in maps), key=lambda sides: sides[0] * sides[1])
        total = torch.stack([enlarge(map_, size) for map_ in maps]).sum(0)
        return enlarge(self.read(total), (x_BCHW.shape[2], x_BCHW.shape[3]))


def enlarge(x: Float[Tensor, "B C H W"], size: Sequence[int]) -> Float[Tensor, "B C H2 W2"]:
    """A map of another size, bilinear."""
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


def draw_shapes(
    count: int, height: int, width: int, rng: np.random.Generator
) -> tuple[Float[Tensor, "B 3 H W"], Int[Tensor, "B H W"]]:
    """Images of two or three shapes in random colours on a noisy ground, and the class of each pixel.

    Args:
        count: images.
        height: their rows.
        width: their columns.
        rng: everything is drawn from it.
    """
    y, x = np.mgrid[:height, :width]
    images = rng.normal(0, 0.3, (count, 3, height, width)) + rng.normal(0, 0.5, (count, 3, 1, 1))
    labels = np.zeros((count, height, width), np.int64)
    for image, label in zip(images, labels, strict=True):
        for _ in range(rng.integers(2, 4)):
            kind = int(rng.integers(1, len(SHAPES)))
            half = int(rng.integers(min(height, width) // 8, min(height, width) // 4))
            cy, cx = int(rng.integers(half, height - half)), int(rng.integers(half, width - half))
            inside = (abs(y - cy) < half) & (abs(x - cx) < half)
            if SHAPES[kind] == "disc":
                inside = (y - cy) ** 2 + (x - cx) ** 2 < half**2
            colour = rng.normal(0, 1.5, (3, 1))
            image[:, inside] = colour + rng.normal(0, 0.3, (3, int(inside.sum())))
            if SHAPES[kind] == "stripes":
                image[:, inside & (y // 3 % 2 == 0)] = -colour
            label[inside] = kind
    return torch.from_numpy(images.astype(np.float32)), torch.from_numpy(labels)


def train_shapes(
    model: nn.Module, steps: int, height: int, width: int, batch: int = 8, lr: float = 2e-3, seed: int = 0
) -> float:
    """Train on drawn shapes and return the mean intersection over union on others.

    Args:
        model: a ``Segmenter`` of the shapes' classes.
        steps: optimiser steps.
        height: rows of the images, any.
        width: columns of the images.
        batch: images per step.
        lr: peak learning rate, which falls to zero.
        seed: of the images.
    """
    if steps < 1:
        raise InputError(f"expected at least 1 step, found {steps}: change it")
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    model.train()
    for _ in range(steps):
        images, labels = draw_shapes(batch, height, width, rng)
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
    images, labels = draw_shapes(32, height, width, np.random.default_rng(seed + 1))
    with torch.inference_mode():
        return mean_iou(model(images).argmax(1), labels, len(SHAPES))


def mean_iou(predicted: Int[Tensor, "B H W"], labels: Int[Tensor, "B H W"], classes: int) -> float:
    """Intersection over union of each class over all pixels, mean over the classes that occur."""
    pairs = (labels * classes + predicted).flatten()
    counts = torch.bincount(pairs, minlength=classes**2).view(classes, classes).double()
    both = counts.diagonal()
    either = counts.sum(0) + counts.sum(1) - both
    return float((both[either > 0] / either[either > 0]).mean())
