"""What segmentation and detection share: the pyramid of a backbone's features, and their Lightning task.

Shapes: B batch, C channels of the image, H and W its rows and columns, h and w those of a map.
"""

from abc import abstractmethod
from typing import Any, ClassVar, Literal

import timm
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics import Metric
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from tsfm_vision.backbones import load_weights
from tsfm_vision.training.recipes import ImageOptim
from tsfm_vision.training.task import NetTask
from tsfm_vision.weights import data_config


class FeaturePyramid(nn.Module):
    """The maps of a backbone, made equally wide and mixed from coarse to fine (Lin et al., CVPR 2017).

    Args:
        backbone: timm's name of a model that has ``features_only``.
        width: channels of every map.
        weights: file of a classifier's weights for the backbone.
        coarser: makes further maps from the coarsest.
        args: sizes of the backbone, and ``out_indices``.
    """

    def __init__(
        self, backbone: str, width: int, weights: str | None = None, coarser: ExtraFPNBlock | None = None, **args: Any
    ) -> None:
        super().__init__()
        features: Any = timm.create_model(backbone, features_only=True, **args)
        if weights is not None:
            sizes = {key: value for key, value in args.items() if key != "out_indices"}
            whole = load_weights(timm.create_model(backbone, **sizes), weights).state_dict()
            features.model.load_state_dict({key: whole[key] for key in features.model.state_dict()})
        self.backbone, self.out_channels = features, width
        self.reductions: list[int] = features.feature_info.reduction()
        self.mixed = FeaturePyramidNetwork(features.feature_info.channels(), width, coarser)

    def forward(self, x_BCHW: Float[Tensor, "B C H W"]) -> dict[str, Tensor]:
        """Maps ``[B, width, h, w]`` by the number of their level, the finest first."""
        return self.mixed({str(level): map_ for level, map_ in enumerate(self.backbone(x_BCHW))})


class DenseTask(NetTask):
    """Train, validate and test a model that reads a feature pyramid.

    Args:
        backbone: timm's name of a model that has ``features_only``.
        num_classes: classes of a pixel, or kinds of objects.
        width: channels of the pyramid.
        backbone_args: sizes of the backbone, and ``out_indices``.
        weights: file of a classifier's weights for the backbone, of timm or of the original implementation.
        optim: optimiser and schedule.

    Attributes:
        targets: what the data module gives with an image.
        coarser: makes further maps from the coarsest.
        metric: the scores of a part.
    """

    targets: ClassVar[Literal["masks", "boxes"]]
    coarser: ClassVar[type[ExtraFPNBlock] | None] = None
    metric: Metric

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        width: int = 64,
        backbone_args: dict[str, Any] | None = None,
        weights: str | None = None,
        optim: ImageOptim = ImageOptim(),  # noqa: B008
    ) -> None:
        super().__init__()
        coarser = self.coarser() if self.coarser is not None else None
        pyramid = FeaturePyramid(backbone, width, weights, coarser, **(backbone_args or {}))
        self.num_classes, self.optim, self.data_config = num_classes, optim, data_config(pyramid.backbone)
        self.net = self.build(pyramid)

    @abstractmethod
    def build(self, pyramid: FeaturePyramid) -> nn.Module:
        """The model on a pyramid; also sets ``metric``."""

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """The loss of a batch of images and targets, in training."""

    @abstractmethod
    def validation_step(self, batch: Any, batch_idx: int, part: str = "val") -> None:
        """Update ``metric`` with a batch."""

    @abstractmethod
    def scores(self) -> dict[str, Tensor]:
        """The scores of ``metric`` by name."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of one batch."""
        loss = self.loss(batch)
        self.log("train_loss", loss.detach(), prog_bar=True, batch_size=len(batch[0]), sync_dist=True)
        return loss

    def on_validation_epoch_end(self, part: str = "val") -> None:
        """Log the scores of all images."""
        self.log_dict({f"{part}_{name}": value for name, value in self.scores().items()})
        self.metric.reset()

    def on_test_epoch_end(self) -> None:
        """The same of the test images."""
        self.on_validation_epoch_end("test")
