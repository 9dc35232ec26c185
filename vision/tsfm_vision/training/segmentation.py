"""Segmentation on a backbone's feature pyramid.

Shapes: B batch, C channels of the image, H and W its rows and columns, K classes.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import JaccardIndex

from tsfm.training import log_mean
from tsfm_vision.training.dense import DenseTask, FeaturePyramid
from tsfm_vision.training.scenes import IGNORED


class Segmenter(nn.Module):
    """Classes of pixels: the maps of a feature pyramid, enlarged to the finest and added, are read by convolutions (as
    in Kirillov et al., "Panoptic Feature Pyramid Networks", CVPR 2019).

    Args:
        pyramid: the feature pyramid.
        classes: classes of a pixel.
    """

    def __init__(self, pyramid: FeaturePyramid, classes: int) -> None:
        super().__init__()
        self.pyramid, width = pyramid, pyramid.out_channels
        self.read = nn.Sequential(
            nn.GroupNorm(8, width),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, classes, 1),
        )

    def forward(self, x_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K H W"]:
        levels = list(self.pyramid(x_BCHW).values())
        size = max((map_.shape[2:] for map_ in levels), key=lambda sides: sides.numel())
        total = torch.stack([enlarge(map_, size) for map_ in levels]).sum(0)
        return enlarge(self.read(total), x_BCHW.shape[2:])


def enlarge(x: Float[Tensor, "B C H W"], size: Sequence[int]) -> Float[Tensor, "B C H2 W2"]:
    """A map of another size, bilinear."""
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


class SegmentationTask(DenseTask):
    """Train, validate and test a ``Segmenter``.

    Scores, over the pixels of all images: the mean intersection over union of the classes that occur, and the
    cross-entropy.
    """

    targets = "masks"
    logged: ClassVar[tuple[str, ...]] = ("train_loss", "val_loss", "val_miou")

    def build(self, pyramid: FeaturePyramid) -> Segmenter:
        """The model on a pyramid."""
        self.metric = JaccardIndex("multiclass", num_classes=self.num_classes, ignore_index=IGNORED)
        return Segmenter(pyramid, self.num_classes)

    def loss(self, batch: Any) -> Tensor:
        """Cross-entropy of the pixels."""
        return F.cross_entropy(self.net(batch[0]), batch[1], ignore_index=IGNORED)

    def validation_step(self, batch: Any, batch_idx: int, part: str = "val") -> None:
        """Count the pixels of each class that are found, and log their cross-entropy."""
        logits = self.net(batch[0])
        self.metric.update(logits.argmax(1), batch[1])
        loss = F.cross_entropy(logits, batch[1], ignore_index=IGNORED)
        log_mean(self, f"{part}_loss", loss, int((batch[1] != IGNORED).sum()))

    def scores(self) -> dict[str, Tensor]:
        """Mean intersection over union."""
        return {"miou": self.metric.compute()}
