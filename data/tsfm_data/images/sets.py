"""Sets of labelled images: class folders, a Parquet file of encoded images, or arrays; decoded when read.

Shapes: N images, H and W rows and columns of pixels, C channels.
"""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image

from tsfm_data.errors import InputError
from tsfm_data.images.files import (
    CHANNELS,
    check_exists,
    decode,
    image_format,
    is_image,
    list_folder,
    read_parquet,
    shorten,
)

OnBad = Literal["error", "skip"]
Item = bytes | Path | np.ndarray
# Names of parts in folders and split columns -> our name.
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
        locate: gives the location of an image by its index, for messages: a file, or a row in one.
        channels: of the decoded images, 1 (grey) or 3 (RGB), one more with alpha; arrays may have any number.
        skipped: a message for each image or class folder that was left out.
        content: ``digests`` of files that were decoded since; computed if it is not given.
    """

    name: str
    classes: tuple[str, ...]
    labels: Int[np.ndarray, " N"]
    items: Sequence[Item]
    locate: Callable[[int], str]
    channels: int = 3
    skipped: tuple[str, ...] = ()
    content: Int[np.ndarray, " N"] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """Decode one image.

        Raises:
            InputError: it cannot be decoded, or its mode is ambiguous.
        """
        item = self.items[index]
        if isinstance(item, np.ndarray):
            return Image.fromarray(item[..., 0] if item.shape[2] == 1 else item)
        try:
            return decode(item, self.channels)
        except InputError as error:
            raise InputError(f"{self.locate(index)}: {error}") from error

    def pixels(self, index: int) -> UInt8[np.ndarray, "H W C"]:
        """Decode one image to an array."""
        item = self.items[index]
        if isinstance(item, np.ndarray):
            return item
        pixels = np.asarray(self.image(index))
        return pixels[..., None] if pixels.ndim == 2 else pixels

    def select(self, indices: Sequence[int] | Int[np.ndarray, " M"]) -> "ImageSet":
        """Select images, in the given order."""
        chosen = [int(i) for i in indices]
        items, locate = [self.items[i] for i in chosen], self.locate
        content = None if self.content is None else self.content[chosen]
        return replace(
            self, labels=self.labels[chosen], items=items, locate=lambda i: locate(chosen[i]), content=content
        )

    def digests(self) -> Int[np.ndarray, " N"]:
        """The first 64 bits of the SHA-256 of each image: of the file, the encoded bytes, or the pixels of an array.

        Raises:
            InputError: a file cannot be read.
        """
        if self.content is not None:
            return self.content

        def digest(index: int) -> int:
            item = self.items[index]
            try:
                content: Any = item.read_bytes() if isinstance(item, Path) else item
                content = np.ascontiguousarray(content) if isinstance(content, np.ndarray) else content
            except OSError as error:
                raise InputError(f"expected an image at {self.locate(index)}, found none that can be read") from error
            return int.from_bytes(hashlib.sha256(content).digest()[:8], "little", signed=True)

        with ThreadPoolExecutor() as pool:
            return np.array(list(pool.map(digest, range(len(self)))), np.int64)

    def decoded(self) -> "ImageSet":
        """The same set with every image decoded in memory, so that epochs over a small set take no decoding."""
        with ThreadPoolExecutor() as pool:
            return replace(self, items=list(pool.map(self.pixels, range(len(self)))), content=self.digests())

    def size(self) -> tuple[int, int]:
        """Rows and columns of the first image."""
        if not len(self):
            raise InputError(f"{self.name}: expected at least one image, found none: check the source")
        return self.pixels(0).shape[0], self.pixels(0).shape[1]

    def describe(self) -> str:
        """One line for the user: number of images and classes, and what was skipped."""
        text = f"{len(self):,} images of {len(self.classes)} classes"
        if self.skipped:
            text += f" ({len(self.skipped)} skipped, such as {shorten(self.skipped[0])})"
        return text


def open_images(source: str | Path, channels: int = 3, on_bad: OnBad = "error") -> dict[str, ImageSet]:
    """Open the parts of an image set on disk: "train", "val", "test", or "all" if it is not split.

    Args:
        source: a folder of class folders, or of ``train``, ``val`` and ``test`` folders that hold them; a Parquet file
            with the columns ``image`` (encoded bytes, or a struct with ``bytes``), ``label`` and, if there are
            parts, ``split``; one image, or a folder of images without classes, for prediction.
        channels: 1 decodes to grey, 3 to RGB, 2 and 4 to the same and alpha.
        on_bad: treatment of images that are corrupt, empty, animated, CMYK or of 16 bits, and of empty class
            folders: ``"error"`` raises at the first, ``"skip"`` leaves them out and records a message for each. With
            "skip" every image is decoded once here; with "error" an image is checked when it is read.

    Raises:
        InputError: there is no such source, it contains no images, or with "error" one of them is bad.
    """
    path = Path(source)
    if channels not in CHANNELS:
        raise InputError(f"expected 1 to 4 channels of images in files, found {channels}: change in_chans")
    if path.is_dir():
        parts = _open_folder(path, channels, on_bad)
    else:
        check_exists(path)
        parts = _open_parquet(path, channels) if path.suffix in (".parquet", ".pq") else _open_files(path, channels)
    return {part: drop_bad(images) for part, images in parts.items()} if on_bad == "skip" else parts


def from_arrays(
    images: UInt8[np.ndarray, "N H W"] | UInt8[np.ndarray, "N H W C"],
    labels: Int[np.ndarray, " N"],
    classes: Sequence[str],
    name: str = "arrays",
) -> ImageSet:
    """Make an image set from arrays.

    Args:
        images: grey, or with channels last; 0 to 255.
        labels: class of each.
        classes: their names.
        name: of the set.

    Raises:
        InputError: the numbers of labels and images differ, or a label is not a class.
    """
    if len(images) != len(labels):
        raise InputError(f"{name}: expected a label for each of {len(images)} images, found {len(labels)} labels")
    pixels = images[..., None] if images.ndim == 3 else images
    _check_labels(labels, classes, name)
    return ImageSet(name, tuple(classes), labels, list(pixels), lambda i: f"{name}, image {i}", pixels.shape[3])


def drop_bad(images: ImageSet) -> ImageSet:
    """Remove images that cannot be read; ``skipped`` gets a message for each.

    Raises:
        InputError: no image is left.
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
    readable = images.select([i for i, line in enumerate(problems) if line is None])
    return replace(readable, skipped=(*images.skipped, *lines))


def hold_out(
    images: ImageSet, fraction: float, seed: int, free: Bool[np.ndarray, " N"] | None = None
) -> tuple[ImageSet, ImageSet]:
    """Split a set at random: the second part has about ``fraction`` of the images of each class, at least one.

    Args:
        images: to split.
        fraction: share of the second part.
        seed: of the choice.
        free: which images may be in the second part; all by default.

    Raises:
        InputError: the fraction does not lie between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise InputError(f"expected a held-out fraction between 0 and 1, found {fraction}: change val_fraction")
    rng = np.random.default_rng(seed)
    held: list[np.ndarray] = []
    for label in range(len(images.classes)):
        members = rng.permutation(np.flatnonzero(images.labels == label))
        count = max(1, round(fraction * len(members))) if len(members) > 1 else 0
        held.append((members if free is None else members[free[members]])[:count])
    out = np.sort(np.concatenate(held)).astype(np.int64)
    return images.select(np.setdiff1d(np.arange(len(images)), out)), images.select(out)


def _open_folder(path: Path, channels: int, on_bad: OnBad) -> dict[str, ImageSet]:
    loose = sorted(filter(is_image, path.iterdir()))
    if loose and not any(d.is_dir() for d in path.iterdir()):
        return _unlabelled(path.name, loose, channels)
    parts = {PARTS[d.name.lower()]: d for d in sorted(path.iterdir()) if d.is_dir() and d.name.lower() in PARTS}
    listed = {part: list_folder(folder) for part, folder in (parts or {WHOLE: path}).items()}
    classes = tuple(sorted({name for folders in listed.values() for name in folders}))
    sets = {}
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
        sets[part] = ImageSet(path.name, classes, labels, items, _file_locator(items), channels, tuple(empty))
    return sets


def _file_locator(files: Sequence[Path]) -> Callable[[int], str]:
    return lambda index: str(files[index])


def _open_files(path: Path, channels: int) -> dict[str, ImageSet]:
    if image_format(path) is None:
        raise InputError(
            f"{path}: expected an image, a Parquet file or a folder of class folders, found something else"
        )
    return _unlabelled(path.stem, [path], channels)


def _unlabelled(name: str, files: list[Path], channels: int) -> dict[str, ImageSet]:
    return {WHOLE: ImageSet(name, (), np.full(len(files), -1), files, _file_locator(files), channels)}


def _open_parquet(path: Path, channels: int) -> dict[str, ImageSet]:
    items, labels, parts, classes = read_parquet(path)
    _check_labels(labels, classes, str(path))
    whole = ImageSet(path.stem, tuple(classes), labels, items, lambda i: f"{path}, row {i + 1}", channels)
    if parts is None:
        return {WHOLE: whole}
    names = [PARTS.get(str(part).lower(), str(part)) for part in parts]
    return {name: whole.select([i for i, part in enumerate(names) if part == name]) for name in dict.fromkeys(names)}


def _check_labels(labels: Int[np.ndarray, " N"], classes: Sequence[str], where: str) -> None:
    wrong = np.flatnonzero((labels < -1) | (labels >= len(classes)))
    if len(wrong):
        raise InputError(
            f"{where}, image {wrong[0] + 1}: expected a label from 0 to {len(classes) - 1}, found {labels[wrong[0]]}"
        )
