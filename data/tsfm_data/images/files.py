"""Reading image files: formats, decoding, and clear errors for unsuitable images."""

import difflib
import io
import json
import struct
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Int
from PIL import Image, ImageOps, UnidentifiedImageError
from typing_extensions import TypedDict

from tsfm_data.errors import LIBRARY_ERRORS, InputError, reason_of
from tsfm_data.io import check_record, guarded, read_columns

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
# Modes that convert to 8 bits per channel without a choice that only the owner of the image can make.
MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "YCbCr")
BROKEN = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)
CHANNELS = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # Pillow's modes of decoded images
MOST_CLASSES = 1_000_000  # each has a name, and a row in the head of a model


def decode(item: bytes | Path, channels: int) -> Image.Image:
    """Decode an image to grey or RGB, turned upright as its EXIF orientation says.

    Args:
        item: a file, or its content.
        channels: a key of ``CHANNELS``: 1 for grey, 3 for RGB, one more with alpha.

    Raises:
        InputError: it is empty, corrupt, animated, CMYK or of more than 8 bits per channel.
    """
    size = item.stat().st_size if isinstance(item, Path) else len(item)
    if not size:
        raise InputError("expected an image, found an empty file: remove it")
    try:
        source = io.BytesIO(item) if isinstance(item, bytes) else item
        with warnings.catch_warnings(action="ignore"), Image.open(source) as image:
            _check_mode(image)
            return ImageOps.exif_transpose(image).convert(CHANNELS[channels])
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError("expected an image, found something else: remove it") from error
    except BROKEN as error:
        reason = reason_of(error, 80)
        raise InputError(
            f"expected an intact image, found a corrupt one ({reason}): get it again or remove it"
        ) from error


def check_exists(path: Path) -> None:
    """Check that a file exists.

    Raises:
        InputError: it does not; similar names are listed.
    """
    if not path.is_file():
        names = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
        hint = f"near names there: {', '.join(near)}" if near else "check the path"
        raise InputError(f"{path}: expected an image set, found no such file or folder: {hint}")


def _check_mode(image: Image.Image) -> None:
    """Reject images whose conversion to 8 bits is ambiguous."""
    if not all(image.size):
        raise InputError(f"expected an image with pixels, found one of {image.width} x {image.height}: remove it")
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise InputError(f"expected one image, found an animation of {frames} frames: save one of them")
    if image.mode == "CMYK":
        raise InputError("expected RGB or grey, found CMYK: convert it with its own colour profile")
    # A 16-bit colour PNG opens in an 8-bit mode; only the arguments of its decoder show the 16 bits.
    deep = image.mode.startswith("I") or any(
        "16" in str(part[3]) for part in getattr(image, "tile", ()) if len(part) > 3
    )
    if deep or image.mode not in MODES:
        depth = "16 bits" if deep else f"mode {image.mode}"
        raise InputError(f"expected 8 bits per channel, found {depth}: convert it with the scale of its values")


def image_format(path: Path) -> str | None:
    """The format of an image file by its content; None if it is no image."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            return image.format
    except BROKEN:
        return "" if path.suffix.lower() in SUFFIXES else None


def list_folder(path: Path) -> dict[str, tuple[Path, list[Path]]]:
    """Class name -> its folder and the image files in it and below, sorted by name.

    Hidden files and files without an image suffix are ignored.

    Raises:
        InputError: there are no class folders.
    """
    folders = sorted(d for d in path.iterdir() if d.is_dir() and not d.name.startswith("."))
    if not folders:
        hint = ", ".join(sorted(f.name for f in path.iterdir())[:3]) or "nothing"
        raise InputError(f"{path}: expected a folder for each class, found {hint}: sort the images into class folders")
    return {folder.name: (folder, sorted(filter(is_image, folder.rglob("*")))) for folder in folders}


def is_image(path: Path) -> bool:
    """Whether a file has an image suffix and is not hidden."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def read_parquet(path: Path) -> tuple[list[bytes], Int[np.ndarray, " N"], list[str] | None, Sequence[str]]:
    """Read encoded images, labels, parts (None without a column ``split``) and class names of a Parquet file.

    Class names are in the schema's metadata, under ``classes`` (a JSON list) or in the form of Hugging Face's
    ``datasets``; without either, the names are the numbers.

    Raises:
        InputError: it is not a Parquet file, or a column is missing, of another type, or has an empty cell.
    """
    table = read_columns(path, ".parquet")
    for name in ("image", "label"):
        if name not in table.column_names:
            raise InputError(
                f"{path}: expected the columns image and label, found {', '.join(table.column_names)[:80]}: rename them"
            )
    with guarded(str(path), "a Parquet"):  # two columns may have one name
        images, labels = table["image"], table["label"]
    if pa.types.is_struct(images.type) and images.type.get_field_index("bytes") >= 0:
        images = pa.chunked_array([chunk.field("bytes") for chunk in images.chunks])
    if not pa.types.is_binary(images.type) and not pa.types.is_large_binary(images.type):
        raise InputError(f"{path}: expected encoded images (bytes) in column image, found {images.type}")
    if not pa.types.is_integer(labels.type):
        raise InputError(f"{path}: expected whole numbers in column label, found {labels.type}")
    for name, column in (("image", images), ("label", labels)):
        if column.null_count:
            row = column.is_null().to_pylist().index(True) + 1
            raise InputError(f"{path}, row {row}: expected a value in column {name}, found none: remove the row")
    parts = table["split"].to_pylist() if "split" in table.column_names else None
    numbers = labels.to_numpy().astype(np.int64)
    return images.to_pylist(), numbers, parts, _class_names(table.schema.metadata or {}, numbers, path)


class Classes(TypedDict):
    """The class names in the metadata of a Parquet file."""

    names: list[str]


def _class_names(metadata: dict[bytes, bytes], labels: Int[np.ndarray, " N"], path: Path) -> Sequence[str]:
    key = next((key for key in (b"classes", b"huggingface") if key in metadata), None)
    if key is not None:
        try:
            content = json.loads(metadata[key])
            names = content if key == b"classes" else content["info"]["features"]["label"]["names"]
            return check_record({"names": names}, Classes, path, "a JSON list of class names in the metadata")["names"]
        except InputError:
            raise
        except LIBRARY_ERRORS as error:
            raise InputError(
                f"{path}: expected a JSON list of class names in the metadata, found {reason_of(error)}"
            ) from error
    last = int(labels.max(initial=-1))
    if last >= MOST_CLASSES:
        raise InputError(
            f"{path}: expected labels below {MOST_CLASSES:,}, found {last:,}: number the classes from 0 on"
        )
    return [str(number) for number in range(last + 1)]


def shorten(line: str, width: int = 120) -> str:
    """Shorten a line to at most ``width`` characters."""
    return line if len(line) <= width else line[: width - 1] + "…"
