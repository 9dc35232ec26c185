"""Images with a class for each pixel or with boxes, from a folder or drawn, and their data module.

Shapes: B images, H and W rows and columns of pixels, N boxes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NotRequired, cast

import numpy as np
import torch
from annotated_types import MinLen
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from torchvision import tv_tensors
from torchvision.transforms import v2
from typing_extensions import TypedDict

from tsfm_data.errors import InputError, check_sizes
from tsfm_data.images import decode, is_image
from tsfm_data.io import read_record
from tsfm_vision.evaluation import Key, reseed
from tsfm_vision.training.loaders import Loaders

KINDS = ("disc", "square", "stripes")  # of shapes that are drawn; their classes are 1 to 3, the background's is 0
IGNORED = 255  # of a mask: pixels without a class
Boxes = dict[str, Tensor]  # "boxes" [N, 4] (left, top, right, lower), "labels" [N] and "iscrowd" [N]


class CocoImage(TypedDict):
    """An image in an annotation file."""

    id: int
    file_name: str


class CocoBox(TypedDict):
    """A box: its left and upper edge, width and height in pixels."""

    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    iscrowd: NotRequired[int]


class CocoKind(TypedDict):
    """A kind of objects."""

    id: int
    name: str


class Coco(TypedDict):
    """The content of an annotation file in COCO's format."""

    images: Annotated[list[CocoImage], MinLen(1)]
    annotations: list[CocoBox]
    categories: Annotated[list[CocoKind], MinLen(1)]


class Scenes(Dataset):
    """Images with masks or boxes, by an index or a key of ``Shuffled``; both are changed alike.

    Args:
        images: files, or pixels ``[3, H, W]``.
        targets: of each, a file with a mask, its pixels ``[H, W]``, or boxes.
        transform: of torchvision's second version.
        seed: of the augmentation of keyed images.
        classes: classes of a pixel, in files of masks.
    """

    def __init__(self, images: Sequence[Any], targets: Sequence[Any], transform: Any, seed: int, classes: int) -> None:
        self.images, self.targets, self.transform = images, targets, transform
        self.seed, self.classes = seed, classes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: int | Key) -> tuple[Tensor, Any]:
        if isinstance(key, tuple):
            reseed(self.seed, *key)
        index = key[2] if isinstance(key, tuple) else key
        image, target = self.images[index], self.targets[index]
        if isinstance(image, Path):
            image = read_image(image)
        if isinstance(target, Path):
            target = read_mask(target, self.classes, image.shape[1:])
        if isinstance(target, dict):
            boxes: Any = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=tuple(image.shape[1:]))  # type: ignore[call-overload]
            target = {**target, "boxes": boxes}
        else:
            target = tv_tensors.Mask(target)
        return self.transform(tv_tensors.Image(image), target)


class DenseDataModule(Loaders):
    """Images of a folder with masks or boxes, as the task needs, or of drawn shapes."""

    def __init__(
        self,
        source: str = "shapes",
        height: int = 96,
        width: int = 128,
        batch_size: int = 16,
        count: int = 512,
        flip: float = 0.5,
        workers: int = 0,
        seed: int = 2023,
    ) -> None:
        """Store the options; nothing is read before ``setup``.

        Args:
            source: "shapes", drawn from the seed, or a folder of train, val and perhaps test folders. Each has a folder
                images. For segmentation it has a folder masks: a mask is a PNG with the name of its image, and as
                values the classes from 0, 255 for none. For detection it has annotations.json in COCO's format.
            height: rows that images are resized to.
            width: columns.
            batch_size: images in a batch (of each process).
            count: shapes: images to train on, and a quarter as many each to validate and test with.
            flip: probability of a horizontal flip of a training image.
            workers: processes that read images.
            seed: of the shapes, of order and flips.
        """
        super().__init__(source, batch_size, workers, seed)
        check_sizes("change it", height=height, width=width, count=count)
        if not 0 <= flip <= 1:
            raise InputError(f"expected a flip probability from 0 to 1, found {flip}: change it")
        self.size, self.count, self.flip = (height, width), count, flip
        self.collate = collate

    def setup(self, stage: str) -> None:
        """Draw the shapes or list the files, and check that they fit the task."""
        task: Any = self.trainer.lightning_module  # type: ignore[union-attr]
        self.normalise = v2.Normalize(task.data_config["mean"], task.data_config["std"])
        self.classes = task.num_classes
        task.data_config["input_size"] = (3, *self.size)
        if self.parts:
            return
        with_boxes, folder = task.targets == "boxes", Path(self.source)
        if self.source == "shapes":
            expected = len(KINDS) + (not with_boxes)
            if task.num_classes != expected:
                raise InputError(f"expected num_classes {expected} for shapes, found {task.num_classes}: change it")
            for index, (part, share) in enumerate((("train", 1), ("val", 4), ("test", 4))):
                rng = np.random.default_rng([self.seed, index])
                images, masks, boxes = draw_shapes(max(1, self.count // share), *self.size, rng)
                self.parts[part] = list(zip(images, boxes if with_boxes else masks, strict=True))
            return
        for part in ("train", "val", "test"):
            found = list_boxes(folder / part, self.classes) if with_boxes else list_masks(folder / part)
            if found:
                self.parts[part] = found
        if "train" not in self.parts:
            more = "annotations.json" if with_boxes else "masks/NAME.png"
            raise InputError(f"expected {folder}/train/images/NAME.jpg with {more}, found no images: add it")

    def dataset(self, part: str) -> Scenes:
        """The images of a part; those of "train" flipped at random."""
        images, targets = zip(*self.part(part), strict=True)
        steps = [v2.Resize(self.size, v2.InterpolationMode.BICUBIC)]
        steps += [v2.RandomHorizontalFlip(self.flip)] if part == "train" else []
        scaled = v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True)
        transform = v2.Compose([*steps, scaled, self.normalise, v2.ToPureTensor()])
        return Scenes(images, targets, transform, self.seed, self.classes)

    def describe(self) -> str:
        """One line for a command to print: the images of each part."""
        return f"images: {self.counts()}"


def collate(samples: Sequence[tuple[Tensor, Any]]) -> tuple[Tensor, Any]:
    """A batch of images with masks, or with a list of their boxes, which differ in number."""
    images, targets = zip(*samples, strict=True)
    return torch.stack(images), default_collate(list(targets)) if isinstance(targets[0], Tensor) else list(targets)


def read_image(file: Path) -> UInt8[Tensor, "3 H W"]:
    """The colours of an image.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return torch.from_numpy(np.array(decode(file, 3))).permute(2, 0, 1)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def read_mask(file: Path, classes: int, size: Sequence[int]) -> Int[Tensor, "H W"]:
    """The classes of the pixels of an image of this size.

    Raises:
        InputError: it cannot be read, or does not fit.
    """
    try:
        with Image.open(file) as opened:
            labels = np.array(opened, np.int64)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{file}: expected an intact PNG of classes, found another file: get it again") from error
    expected = f"{file}: expected classes below {classes} as values of pixels, found"
    if labels.ndim != 2:
        raise InputError(f"{expected} colours")
    if (top := labels[labels != IGNORED].max(initial=0)) >= classes:
        raise InputError(f"{expected} class {top}")
    if labels.shape != tuple(size):
        raise InputError(
            f"{file}: expected a mask as large as its image, {size[0]} x {size[1]}, found "
            f"{labels.shape[0]} x {labels.shape[1]}: make it anew"
        )
    return torch.from_numpy(labels)


def list_masks(folder: Path) -> list[tuple[Path, Path]]:
    """The images of a part, each with its mask.

    Raises:
        InputError: a mask is missing.
    """
    images = sorted(path for path in (folder / "images").glob("*") if is_image(path))
    masks = [folder / "masks" / f"{path.stem}.png" for path in images]
    for mask in masks:
        if not mask.is_file():
            raise InputError(f"expected a mask for each image, found no {mask}: add it")
    return list(zip(images, masks, strict=True))


def list_boxes(folder: Path, kinds: int) -> list[tuple[Path, Boxes]]:
    """The images of a part, each with its boxes; boxes without an area, of which COCO has some, are left out.

    Classes are counted from 1 in the order of their ids.

    Raises:
        InputError: the annotations do not fit, or an image is missing.
    """
    file = folder / "annotations.json"
    if not folder.is_dir():
        return []
    content = read_record(file, Coco, "annotations in COCO's format")
    places = {kind["id"]: number for number, kind in enumerate(sorted(content["categories"], key=lambda k: k["id"]), 1)}
    if len(places) != kinds:
        raise InputError(f"{file}: expected {kinds} categories, found {len(places)}: give --model.num_classes")
    rows: dict[int, list[tuple[int | float, ...]]] = {image["id"]: [] for image in content["images"]}
    for entry in content["annotations"]:
        if entry["image_id"] not in rows or entry["category_id"] not in places:
            raise InputError(f"{file}: expected boxes of its images and categories, found {entry}: correct it")
        x, y, width, height = entry["bbox"]
        if width > 0 and height > 0:
            row = (x, y, x + width, y + height, places[entry["category_id"]], entry.get("iscrowd", 0))
            rows[entry["image_id"]].append(row)
    found = []
    for image in content["images"]:
        path = folder / "images" / image["file_name"]
        if not is_image(path) or not path.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"{file}: expected its images in {folder / 'images'}, found no {path}: add it")
        found.append((path, as_boxes(rows[image["id"]])))
    return found


def as_boxes(rows: Sequence[Sequence[int | float]]) -> Boxes:
    """Boxes from rows of left, top, right, lower edge, class, and whether it is of a crowd."""
    table = torch.tensor(rows, dtype=torch.float32).view(-1, 6)
    return {"boxes": table[:, :4], "labels": table[:, 4].long(), "iscrowd": table[:, 5].long()}


def draw_shapes(
    count: int, height: int, width: int, rng: np.random.Generator
) -> tuple[UInt8[Tensor, "B 3 H W"], Int[Tensor, "B H W"], list[Boxes]]:
    """Images of one to three shapes in random colours on a noisy ground, the class of each pixel, and their boxes.

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
    labels, boxes = np.zeros((count, height, width), np.int64), []
    for image, label in zip(images, labels, strict=True):
        rows = []
        for _ in range(3):
            kind = int(rng.integers(len(KINDS)))
            half = int(rng.integers(min(height, width) // 8, min(height, width) // 4))
            cy, cx = int(rng.integers(half, height - half)), int(rng.integers(half, width - half))
            inside = (abs(y - cy) < half) & (abs(x - cx) < half)
            if label[inside].any():  # shapes do not hide each other
                continue
            if KINDS[kind] == "disc":
                inside = (y - cy) ** 2 + (x - cx) ** 2 < half**2
            colour = rng.normal(0, 1.5, (3, 1))
            image[:, inside] = colour + rng.normal(0, 0.3, (3, int(inside.sum())))
            if KINDS[kind] == "stripes":
                image[:, inside & (y // 3 % 2 == 0)] = -colour
            label[inside] = kind + 1
            rows.append((cx - half + 1, cy - half + 1, cx + half, cy + half, kind + 1, 0))
        boxes.append(as_boxes(rows))
    pixels = (128 + 48 * images).clip(0, 255).round().astype(np.uint8)
    return cast(Any, torch.from_numpy(pixels)), torch.from_numpy(labels), boxes
