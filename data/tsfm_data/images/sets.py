"""Sets of labelled images: a folder of class folders, a Parquet file of encoded bytes, or arrays; decoded when read.

Shapes: N images, H and W rows and columns of pixels, C channels.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from tsfm_data.errors import InputError
from tsfm_data.images.files import check_there, decode, encoded, is_image, list_folder, read_parquet, shorten

OnBad = Literal["error", "skip"]
Item = bytes | Path | np.ndarray
# Names that the parts of a set go by, in folders and in split columns.
PARTS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
WHOLE = "all"


@dataclass(frozen=True)
class ImageSet:
    """Labelled images of one part of a data set.

    Attributes:
        name: of the data set.
        classes: names of the classes; a label is an index into them.
        labels: class of each image.
        items: a file, encoded bytes or pixels ``[H, W, C]`` for each image.
        places: where each image is, for messages: a file, or the row of one.
        channels: of the decoded images, 1 (grey) or 3 (RGB); arrays may have any number.
        skipped: a line for each image or class folder that was left out.
    """

    name: str
    classes: tuple[str, ...]
    labels: Int[np.ndarray, " N"]
    items: Sequence[Item]
    places: Callable[[int], str]
    channels: int = 3
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """One image, decoded.

        Raises:
            InputError: it cannot be decoded, or is of a kind that would be taken for something else.
        """
        item = self.items[index]
        if isinstance(item, np.ndarray):
            return Image.fromarray(item[..., 0] if item.shape[2] == 1 else item)
        try:
            return decode(item, self.channels)
        except InputError as error:
            raise InputError(f"{self.places(index)}: {error}") from error

    def pixels(self, index: int) -> UInt8[np.ndarray, "H W C"]:
        """One image as an array; its rows, columns and channels."""
        item = self.items[index]
        if isinstance(item, np.ndarray):
            return item
        found = np.asarray(self.image(index))
        return found[..., None] if found.ndim == 2 else found

    def select(self, indices: Sequence[int] | Int[np.ndarray, " M"]) -> "ImageSet":
        """Some of the images, in the given order."""
        chosen = [int(i) for i in indices]
        items, places = [self.items[i] for i in chosen], self.places
        return replace(self, labels=self.labels[chosen], items=items, places=lambda i: places(chosen[i]))

    def decoded(self) -> "ImageSet":
        """The same set with every image decoded: for small sets, whose epochs are then spent on the model alone."""
        with ThreadPoolExecutor() as pool:
            return replace(self, items=list(pool.map(self.pixels, range(len(self)))))

    def size(self) -> tuple[int, int]:
        """Rows and columns of the first image."""
        if not len(self):
            raise InputError(f"{self.name}: expected at least one image, found none: check the source")
        return self.pixels(0).shape[0], self.pixels(0).shape[1]

    def describe(self) -> str:
        """One line: images, classes, and what was left out."""
        text = f"{len(self):,} images of {len(self.classes)} classes"
        if self.skipped:
            text += f" ({len(self.skipped)} skipped, such as {shorten(self.skipped[0])})"
        return text


def open_images(source: str | Path, channels: int = 3, on_bad: OnBad = "error") -> dict[str, ImageSet]:
    """The parts of an image set on disk: "train", "val", "test", or "all" where it has none.

    Args:
        source: a folder of class folders, or of ``train``, ``val`` and ``test`` folders that hold them; a Parquet file
            with the columns ``image`` (encoded bytes, or a struct with ``bytes``), ``label`` and, where there are
            parts, ``split``; one image, or a folder of images without classes, to predict on.
        channels: 1 decodes to grey, 3 to RGB.
        on_bad: what becomes of images that are corrupt, empty, animated, CMYK or of 16 bits, and of empty class
            folders: ``"error"`` names the first, ``"skip"`` leaves them out and keeps a line on each. To skip, every
            image is decoded once here; otherwise an image is looked at when it is read.

    Raises:
        InputError: there is no such source, it holds no images, or one of them is bad and none may be.
    """
    path = Path(source)
    if channels not in (1, 3):
        raise InputError(f"expected 1 channel (grey) or 3 (RGB) of images in files, found {channels}: change in_chans")
    if path.is_dir():
        found = _open_folder(path, channels, on_bad)
    else:
        check_there(path)
        found = _open_parquet(path, channels) if path.suffix in (".parquet", ".pq") else _open_files(path, channels)
    return {part: drop_bad(images) for part, images in found.items()} if on_bad == "skip" else found


def from_arrays(
    images: UInt8[np.ndarray, "N H W"] | UInt8[np.ndarray, "N H W C"],
    labels: Int[np.ndarray, " N"],
    classes: Sequence[str],
    name: str = "arrays",
) -> ImageSet:
    """A set of images that are at hand as arrays.

    Args:
        images: grey, or with channels last; 0 to 255.
        labels: class of each.
        classes: their names.
        name: of the set.

    Raises:
        InputError: another number of labels than of images, or a label without a class.
    """
    if len(images) != len(labels):
        raise InputError(f"{name}: expected a label for each of {len(images)} images, found {len(labels)} labels")
    pixels = images[..., None] if images.ndim == 3 else images
    _check_labels(labels, classes, name)
    place = f"{name}, image ".__add__
    return ImageSet(name, tuple(classes), labels, list(pixels), lambda i: place(str(i)), pixels.shape[3])


def drop_bad(images: ImageSet) -> ImageSet:
    """The set without the images that cannot be read, each of which leaves a line in ``skipped``.

    Raises:
        InputError: none is left.
    """

    def problem(index: int) -> str | None:
        try:
            images.image(index)
        except InputError as error:
            return str(error)
        return None

    with ThreadPoolExecutor() as pool:
        problems = list(pool.map(problem, range(len(images))))
    lines = [line for line in problems if line is not None]
    if images.items and len(lines) == len(images):
        raise InputError(f"{images.name}: expected images that can be read, found none among {len(lines)}: {lines[0]}")
    kept = images.select([i for i, line in enumerate(problems) if line is None])
    return replace(kept, skipped=(*images.skipped, *lines))


def hold_out(images: ImageSet, fraction: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """A set in two parts, the second with about ``fraction`` of each class's images (one at least), drawn by seed.

    Raises:
        InputError: the fraction does not lie between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise InputError(f"expected a held-out fraction between 0 and 1, found {fraction}: change val_fraction")
    rng = np.random.default_rng(seed)
    held: list[np.ndarray] = []
    for label in range(len(images.classes)):
        own = rng.permutation(np.flatnonzero(images.labels == label))
        held.append(own[: max(1, round(fraction * len(own)))] if len(own) > 1 else own[:0])
    out = np.sort(np.concatenate(held)).astype(np.int64)
    return images.select(np.setdiff1d(np.arange(len(images)), out)), images.select(out)


def _open_folder(path: Path, channels: int, on_bad: OnBad) -> dict[str, ImageSet]:
    loose = sorted(filter(is_image, path.iterdir()))
    if loose and not any(d.is_dir() for d in path.iterdir()):
        return _unlabelled(path.name, loose, channels)
    parts = {PARTS[d.name.lower()]: d for d in sorted(path.iterdir()) if d.is_dir() and d.name.lower() in PARTS}
    listed = {part: list_folder(folder) for part, folder in (parts or {WHOLE: path}).items()}
    classes = tuple(sorted({name for folders in listed.values() for name in folders}))
    found = {}
    for part, folders in listed.items():
        empty = [f"{folder}: an empty class folder" for folder, files in folders.values() if not files]
        if empty and on_bad == "error":
            raise InputError(
                f"{empty[0].split(':')[0]}: expected at least one image in a class folder, found none: remove the "
                "folder, or skip it with on_bad skip"
            )
        if on_bad == "skip":
            classes = tuple(name for name in classes if any(f[name][1] for f in listed.values() if name in f))
        pairs = [(file, classes.index(name)) for name, (_, files) in folders.items() for file in files]
        labels = np.array([label for _, label in pairs], np.int64)
        items = [file for file, _ in pairs]
        if not items:
            raise InputError(f"{path}: expected image files, found none in the {part} part: check the folder")
        found[part] = ImageSet(path.name, classes, labels, items, _file_places(items), channels, tuple(empty))
    return found


def _file_places(files: Sequence[Path]) -> Callable[[int], str]:
    return lambda index: str(files[index])


def _open_files(path: Path, channels: int) -> dict[str, ImageSet]:
    if encoded(path) is None:
        raise InputError(
            f"{path}: expected an image, a Parquet file or a folder of class folders, found something else"
        )
    return _unlabelled(path.stem, [path], channels)


def _unlabelled(name: str, files: list[Path], channels: int) -> dict[str, ImageSet]:
    return {WHOLE: ImageSet(name, (), np.full(len(files), -1), files, _file_places(files), channels)}


def _open_parquet(path: Path, channels: int) -> dict[str, ImageSet]:
    items, labels, parts, classes = read_parquet(path)
    _check_labels(labels, classes, str(path))
    whole = ImageSet(path.stem, tuple(classes), labels, items, lambda i: f"{path}, row {i + 1}", channels)
    if parts is None:
        return {WHOLE: whole}
    names = [PARTS.get(str(part).lower(), str(part)) for part in parts]
    return {name: whole.select([i for i, own in enumerate(names) if own == name]) for name in dict.fromkeys(names)}


def _check_labels(labels: Int[np.ndarray, " N"], classes: Sequence[str], where: str) -> None:
    wrong = np.flatnonzero((labels < -1) | (labels >= len(classes)))
    if len(wrong):
        raise InputError(
            f"{where}, image {wrong[0] + 1}: expected a label from 0 to {len(classes) - 1}, found {labels[wrong[0]]}"
        )
