"""Detection on a backbone's feature pyramid: torchvision's Faster R-CNN (Ren et al., NeurIPS 2015).

Shapes: B batch, C channels of the image, H and W its rows and columns.
"""

from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics.detection import MeanAveragePrecision
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from tsfm_data.errors import check_sizes
from tsfm_vision.training.dense import DenseTask, FeaturePyramid

RATIOS = (0.5, 1.0, 2.0)  # height to width of an anchor
SIDE = 7  # of the map of a region


class AsTheyAre(nn.Module):
    """In place of torchvision's transform: the images are normalised and of one size already."""

    def forward(self, x_BCHW: Float[Tensor, "B C H W"], targets: Any = None) -> tuple[ImageList, Any]:
        """The batch with its sizes."""
        return ImageList(x_BCHW, [(x_BCHW.shape[2], x_BCHW.shape[3])] * len(x_BCHW)), targets

    def postprocess(self, found: Any, sizes: Any, original: Any) -> Any:
        """The boxes that were found."""
        return found


class DetectionTask(DenseTask):
    """Train, validate and test torchvision's Faster R-CNN.

    As in the published ones, regions are read by layers of four times the pyramid's width. Scores are COCO's mean
    average precision, over ten thresholds of overlap and at 0.5.

    Args:
        anchor: side of the anchors of a map, as a multiple of its stride. The sides should be near those of the
            objects.
        regions: regions of an image that are read in a step of training; in evaluation, up to twice as many.
        args: of ``DenseTask``.
        kwargs: of ``DenseTask``.
    """

    targets = "boxes"
    coarser = LastLevelMaxPool
    logged: ClassVar[tuple[str, ...]] = ("train_loss", "val_map", "val_map_50")

    def __init__(self, *args: Any, anchor: int = 8, regions: int = 512, **kwargs: Any) -> None:
        check_sizes("change it", anchor=anchor, regions=regions)
        self.anchor, self.regions = anchor, regions
        super().__init__(*args, **kwargs)

    def build(self, pyramid: FeaturePyramid) -> FasterRCNN:
        """The model on a pyramid."""
        strides = [*pyramid.reductions, 2 * pyramid.reductions[-1]]
        levels = [str(level) for level in range(len(pyramid.reductions))]
        width = pyramid.out_channels
        sides = tuple((self.anchor * stride,) for stride in strides)
        net = FasterRCNN(
            pyramid,
            rpn_anchor_generator=AnchorGenerator(sides, (RATIOS,) * len(strides)),
            rpn_post_nms_top_n_test=2 * self.regions,
            box_roi_pool=MultiScaleRoIAlign(levels, SIDE, 2),
            box_head=TwoMLPHead(SIDE**2 * width, 4 * width),
            box_predictor=FastRCNNPredictor(4 * width, self.num_classes + 1),  # the background
            box_batch_size_per_image=self.regions,
        )
        net.transform = AsTheyAre()
        self.metric = MeanAveragePrecision()
        return net

    def loss(self, batch: Any) -> Tensor:
        """The sum of the four losses; boxes of crowds are not trained on."""
        images, targets = batch
        single = [{key: value[target["iscrowd"] == 0] for key, value in target.items()} for target in targets]
        return sum(self.net(images, single).values())  # type: ignore[return-value]

    def validation_step(self, batch: Any, batch_idx: int, part: str = "val") -> None:
        """Collect the boxes that are found, and the true ones."""
        self.metric.update(self.net(batch[0]), batch[1])

    def scores(self) -> dict[str, Tensor]:
        """Mean average precision."""
        found = self.metric.compute()
        return {"map": found["map"], "map_50": found["map_50"]}
