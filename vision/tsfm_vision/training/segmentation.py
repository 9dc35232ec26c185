"""Segmentation on a backbone's feature pyramid: the model, its Lightning task, and its data.

Shapes: B batch, C channels of the image, H and W its rows and columns, K classes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytorch_lightning as pl
import timm
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchmetrics import JaccardIndex
from torchvision.ops import FeaturePyramidNetwork

from tsfm.training import log_mean
from tsfm_data.errors import InputError, check_seed, check_sizes
from tsfm_data.images import decode, is_image
from tsfm_data.windows import rank_and_world
from tsfm_vision.backbones import load_weights
from tsfm_vision.training.data import Shuffled, TrainLoader, in_order, workers
from tsfm_vision.training.recipes import ImageOptim
from tsfm_vision.training.task import NetTask
from tsfm_vision.weights import data_config

SHAPES = ("background", "disc", "square", "stripes")
IGNORED = 255  # of a mask: pixels without a class


class Segmenter(nn.Module):
    """Classes of pixels: the maps of a feature pyramid, enlarged to the finest and added, are read by convolutions (as
    in Kirillov et al., "Panoptic Feature Pyramid Networks", CVPR 2019).

    Args:
        backbone: timm's name of a model that has ``features_only``.
        classes: classes of a pixel.
        width: channels of the pyramid.
        backbone_args: sizes of the backbone, and ``out_indices``.
        weights: file of a classifier's weights for the backbone.
    """

    def __init__(
        self, backbone: str, classes: int, width: int = 64, weights: str | None = None, **backbone_args: Any
    ) -> None:
        super().__init__()
        features: Any = timm.create_model(backbone, features_only=True, **backbone_args)
        if weights is not None:
            sizes = {key: value for key, value in backbone_args.items() if key != "out_indices"}
            whole = load_weights(timm.create_model(backbone, **sizes), weights).state_dict()
            features.model.load_state_dict({key: whole[key] for key in features.model.state_dict()})
        self.backbone = features
        self.pyramid = FeaturePyramidNetwork(features.feature_info.channels(), width)
        self.read = nn.Sequential(
            nn.GroupNorm(8, width),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, classes, 1),
        )

    def forward(self, x_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K H W"]:
        maps = {str(level): map_ for level, map_ in enumerate(self.backbone(x_BCHW))}
        levels = list(self.pyramid(maps).values())
        size = max((map_.shape[2:] for map_ in levels), key=lambda sides: sides.numel())
        total = torch.stack([enlarge(map_, size) for map_ in levels]).sum(0)
        return enlarge(self.read(total), x_BCHW.shape[2:])


def enlarge(x: Float[Tensor, "B C H W"], size: Sequence[int]) -> Float[Tensor, "B C H2 W2"]:
    """A map of another size, bilinear."""
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


class SegmentationTask(NetTask):
    """Train, validate and test a ``Segmenter``; scores are the mean intersection over union of the classes that occur.

    Args:
        backbone: timm's name of a model that has ``features_only``.
        num_classes: classes of a pixel.
        width: channels of the pyramid.
        backbone_args: sizes of the backbone, and ``out_indices``.
        weights: file of a classifier's weights for the backbone, of timm or of the original implementation.
        optim: optimiser and schedule.
    """

    logged: ClassVar[tuple[str, ...]] = ("train_loss", "val_loss", "val_miou")

    def __init__(
        self,
        backbone: str,
        num_classes: int = len(SHAPES),
        width: int = 64,
        backbone_args: dict[str, Any] | None = None,
        weights: str | None = None,
        optim: ImageOptim = ImageOptim(),  # noqa: B008
    ) -> None:
        super().__init__()
        self.net, self.optim = Segmenter(backbone, num_classes, width, weights, **(backbone_args or {})), optim
        self.data_config, self.num_classes = data_config(self.net.backbone), num_classes
        self.iou = nn.ModuleDict(
            {part: JaccardIndex("multiclass", num_classes=num_classes, ignore_index=IGNORED) for part in PARTS}
        )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Cross-entropy of the pixels of one batch."""
        loss = F.cross_entropy(self.net(batch[0]), batch[1], ignore_index=IGNORED)
        self.log("train_loss", loss.detach(), prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int, part: str = "val") -> None:
        """Cross-entropy, and intersection over union of all pixels of a part."""
        logits, metric = self.net(batch[0]), self.iou[part]
        metric(logits.argmax(1), batch[1])
        loss = F.cross_entropy(logits, batch[1], ignore_index=IGNORED)
        log_mean(self, f"{part}_loss", loss, int((batch[1] != IGNORED).sum()))
        self.log(f"{part}_miou", metric, on_step=False, on_epoch=True, batch_size=len(logits))  # type: ignore[arg-type]

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """The same of the test images."""
        self.validation_step(batch, batch_idx, "test")


PARTS = ("val", "test")


class Masked(Dataset):
    """Images with the class of each pixel, by an index or a key of ``Shuffled``."""

    def __init__(
        self,
        images: Sequence[Any] | Tensor,
        masks: Sequence[Any] | Tensor,
        read: Any = lambda image, mask: (image, mask),
    ) -> None:
        self.images, self.masks, self.read = images, masks, read

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: int | tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        index = key[2] if isinstance(key, tuple) else key
        return self.read(self.images[index], self.masks[index])


class SegmentationDataModule(pl.LightningDataModule):
    """Images and masks of a folder, or drawn shapes."""

    def __init__(
        self,
        source: str = "shapes",
        height: int = 96,
        width: int = 128,
        batch_size: int = 16,
        count: int = 512,
        workers: int = 0,
        seed: int = 2023,
    ) -> None:
        """Store the options; nothing is read before ``setup``.

        Args:
            source: "shapes", drawn from the seed, or a folder of train, val and perhaps test folders. Each holds
                images and masks: a mask has the name of its image, and as values the classes from 0, 255 for none.
            height: rows that images are resized to.
            width: columns.
            batch_size: images in a batch (of each process).
            count: shapes: images to train on, and a quarter as many each to validate and test with.
            workers: processes that read images.
            seed: of the shapes and of the order.
        """
        super().__init__()
        check_seed(seed)
        check_sizes("change it", height=height, width=width, batch_size=batch_size, count=count)
        self.source, self.size, self.batch_size = source, (height, width), batch_size
        self.count, self.workers, self.seed = count, workers, seed
        self.parts: dict[str, Masked] = {}

    def setup(self, stage: str) -> None:
        """Draw the shapes or list the files, and check that they fit the task."""
        task: Any = self.trainer.lightning_module  # type: ignore[union-attr]
        if self.parts:
            return
        if self.source == "shapes":
            if task.num_classes != len(SHAPES):
                raise InputError(f"expected num_classes {len(SHAPES)} for shapes, found {task.num_classes}: change it")
            for index, (part, share) in enumerate((("train", 1), ("val", 4), ("test", 4))):
                rng = np.random.default_rng([self.seed, index])
                self.parts[part] = Masked(*draw_shapes(max(1, self.count // share), *self.size, rng))
            return
        config, folder = task.data_config, Path(self.source)
        mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))

        def read(image: Path, mask: Path) -> tuple[Tensor, Tensor]:
            size = (self.size[1], self.size[0])
            pixels = np.array(decode(image, 3).resize(size, Image.Resampling.BICUBIC))
            with Image.open(mask) as opened:
                labels = np.array(opened.resize(size, Image.Resampling.NEAREST), np.int64)
            if labels.ndim != 2 or (top := labels[labels != IGNORED].max(initial=0)) >= task.num_classes:
                found = f"class {top}" if labels.ndim == 2 else "colours"
                raise InputError(
                    f"{mask}: expected classes below {task.num_classes} as values of pixels, found {found}"
                )
            return (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - mean) / std, torch.from_numpy(labels)

        for part in ("train", *PARTS):
            images = sorted(path for path in (folder / part / "images").glob("*") if is_image(path))
            masks = [folder / part / "masks" / f"{path.stem}.png" for path in images]
            missing = [path for path in masks if not path.is_file()]
            if missing or (not images and part == "train"):
                raise InputError(
                    f"expected {folder}/train/images/NAME.jpg with masks/NAME.png, found no "
                    f"{missing[0] if missing else 'images'}: add it"
                )
            if images:
                self.parts[part] = Masked(images, masks, read)

    def describe(self) -> str:
        """One line for a command to print: the images of each part."""
        return "images with masks: " + ", ".join(f"{len(data):,} {part}" for part, data in self.parts.items())

    def train_dataloader(self) -> DataLoader:
        """Shuffled training images, in whole batches."""
        data, (rank, world) = self.parts["train"], rank_and_world(self.trainer)
        if len(data) < self.batch_size * world:
            raise InputError(
                f"{self.source}: expected at least one batch of {self.batch_size * world} training images, found "
                f"{len(data)}: give a smaller --data.batch_size"
            )
        sampler = Shuffled(len(data), self.seed, 1, rank, world)
        return TrainLoader(data, self.batch_size, sampler=sampler, drop_last=True, **workers(self.workers))

    def val_dataloader(self) -> DataLoader:
        """Every validation image, in order."""
        return self._in_order("val")

    def test_dataloader(self) -> DataLoader:
        """Every test image, in order."""
        return self._in_order("test")

    def _in_order(self, part: str) -> DataLoader:
        if part not in self.parts:
            raise InputError(f"{self.source}: expected a {part} part, found {', '.join(self.parts)}: add one")
        return in_order(self.parts[part], self.batch_size, self.trainer, self.workers)


def draw_shapes(
    count: int, height: int, width: int, rng: np.random.Generator
) -> tuple[Float[Tensor, "B 3 H W"], Int[Tensor, "B H W"]]:
    """Images of two or three shapes in random colours on a noisy ground, and the class of each pixel.

    Args:
        count: images.
        height: their rows, at least 16.
        width: their columns, at least 16.
        rng: everything is drawn from it.
    """
    if min(height, width) < 16:
        raise InputError(f"expected shapes on at least 16 x 16 pixels, found {height} x {width}: enlarge them")
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
