"""Reads safetensors and PyTorch weight files without executing anything in them.

The format of a file is determined by its first bytes, not by its name.
"""

import json
import math
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from tsfm_data.errors import LIBRARY_ERRORS, InputError, reason_of

if TYPE_CHECKING:
    from torch import Tensor

HEADER_LIMIT = 16 * 2**20  # bytes; headers of the largest models have some hundred kilobytes
DAMAGED: tuple[type[Exception], ...] = (*LIBRARY_ERRORS, SafetensorError)
SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2}
SIZES |= {"I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8}
# Packages whose classes training scripts store in checkpoints next to the weights. They are not imported: an inert
# object replaces each.
LEFT_BY_TRAINING = {"argparse", "lightning", "numpy", "omegaconf", "pathlib", "pytorch_lightning", "timm", "tsfm"}
LEFT_BY_TRAINING |= {"uni2ts", "yacs"}


@dataclass(frozen=True)
class Layout:
    """The header of a safetensors file.

    Attributes:
        shapes: shape of every tensor.
        dtypes: type of every tensor by its name in the format ("F32").
    """

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]

    @property
    def values(self) -> int:
        """Number of elements of all tensors."""
        return sum(math.prod(shape) for shape in self.shapes.values())


class Inert:
    """Replaces an object of a class that is not imported; accepts any arguments and does nothing."""

    def __new__(cls, *arguments: object, **options: object) -> "Inert":
        """Ignore all arguments."""
        return super().__new__(cls)

    def __init__(self, *arguments: object, **options: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def file_format(file: Path) -> str:
    """The format of a file by its first bytes: "safetensors", "torch" (a zip of PyTorch) or "pickle".

    Raises:
        InputError: another format, or a name with the suffix of another format.
    """
    check_file(file)
    with file.open("rb") as handle:
        start = handle.read(64)
    if start.startswith(b"PK\x03\x04"):
        format_name = "torch"
    elif start[8:9] == b"{" and (start[:1] != b"\x80" or start[4:8] == bytes(4)):
        format_name = "safetensors"  # its first eight bytes are a length, which may begin as a pickle does
    elif start[:1] == b"\x80":
        format_name = "pickle"
    else:
        reasons = {b"version https://git-lfs": "a pointer of Git LFS: fetch the file itself", b"<": "a web page"}
        reason = next((text for sign, text in reasons.items() if start.lstrip().startswith(sign)), "something else")
        raise InputError(f"expected weights (safetensors or a PyTorch file) in {file}, found {reason}: get it again")
    if (file.suffix == ".safetensors") != (format_name == "safetensors"):
        promised = "a safetensors file" if file.suffix == ".safetensors" else "a PyTorch file"
        what = {"torch": "a PyTorch file", "pickle": "a pickle"}.get(format_name, "a safetensors file")
        raise InputError(f"expected {promised} at {file}, found {what} under that name: it was not read, get it again")
    return format_name


def check_file(file: Path) -> None:
    """Check that a path is a file, and not a link to another folder.

    Links of a Hugging Face cache, from a snapshot to its blobs, are allowed.

    Raises:
        InputError: no file, or a link out of its folder.
    """
    if not file.is_file():
        raise InputError(f"expected a file of weights at {file}, found none: check the path")
    if not file.is_symlink():
        return
    home, real = file.parent.resolve(), file.resolve()
    snapshots = next((parent for parent in home.parents if parent.name == "snapshots"), None)
    allowed = [home] if snapshots is None else [home, snapshots.parent / "blobs"]
    if not any(real.is_relative_to(folder) for folder in allowed):
        raise InputError(f"expected a file at {file}, found a link out of its folder, to {real}: copy the file there")


def layout(file: Path) -> Layout:
    """Names, types and shapes of a safetensors file, checked against its size; no tensor is read.

    Raises:
        InputError: another format, a header that is too long or wrong, or missing or excess data.
    """
    if file_format(file) != "safetensors":
        raise InputError(f"expected a safetensors file at {file}, found another format: tsfm weights convert reads it")
    size = file.stat().st_size
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if length > min(HEADER_LIMIT, size - 8):
            raise InputError(
                f"expected a header of at most {min(HEADER_LIMIT, size - 8):,} bytes in {file}, found one that claims "
                f"{length:,}: the file is truncated or malicious, get it again"
            )
        raw = handle.read(length)
    try:
        header = json.loads(raw)
        entries = {key: value for key, value in header.items() if key != "__metadata__"}
        shapes = {key: tuple(map(_whole, value["shape"])) for key, value in entries.items()}
        dtypes = {key: str(value["dtype"]) for key, value in entries.items()}
        spans = {key: tuple(map(_whole, value["data_offsets"])) for key, value in entries.items()}
        end = 0
        for key in sorted(spans, key=lambda key: spans[key]):
            begin, stop = spans[key]
            if begin != end or stop - begin != math.prod(shapes[key]) * SIZES[dtypes[key]]:
                raise ValueError(f"tensor {key} does not fill its span")
            end = stop
    except LIBRARY_ERRORS as error:
        reason = reason_of(error, 100)
        raise InputError(
            f"expected a header of tensors in {file}, found a wrong one ({reason}): get it again"
        ) from error
    if end != size - 8 - length:
        raise InputError(
            f"expected {end:,} bytes of tensors in {file}, found {size - 8 - length:,}: it is truncated or has "
            "something appended, get it again"
        )
    return Layout(shapes, dtypes)


def _whole(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"expected a whole number, found {value!r:.30}")
    return value


def read_safetensors(file: Path) -> "dict[str, Tensor]":
    """The tensors of a safetensors file.

    Raises:
        InputError: see ``layout``.
    """
    from safetensors.torch import load_file  # PyTorch, which the layout of a file does not need

    layout(file)
    try:
        return load_file(file)
    except DAMAGED as error:
        raise InputError(
            f"expected a complete safetensors file, found a corrupt one at {file} ({reason_of(error)})"
        ) from error


def read_tensors(file: Path, device: str = "cpu", foreign: bool = True) -> Mapping[str, Any]:
    """The content of a weight file: tensors by name, and for a PyTorch file plain values, too.

    Args:
        file: safetensors, or a file of PyTorch in its new or old format.
        device: of the tensors of a PyTorch file; "meta" reads names and shapes only.
        foreign: whether classes that training scripts leave in checkpoints are accepted, and replaced.

    Raises:
        InputError: the file is corrupt, contains more than tensors and plain values, or tensors that are larger than
            the file. Nothing in it was executed.
    """
    format_name = file_format(file)
    if format_name == "safetensors":
        return read_safetensors(file)
    import torch  # slow, and ``layout`` does not need it

    names = _foreign_names(file) if format_name == "torch" else ["argparse.Namespace"] * foreign
    unknown = [name for name in names if not foreign or name.split(".")[0] not in LEFT_BY_TRAINING]
    if unknown:
        raise InputError(
            f"expected tensors and plain values in {file}, found code that would be called ({', '.join(unknown[:3])}): "
            "it was not run; ask for a safetensors file"
        )
    try:
        # PyTorch compares the names as text and uses the class ``Inert`` for each; nothing is imported.
        with torch.serialization.safe_globals([(Inert, name) for name in names]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about another pickle protocol, which is read or refused below
            content = torch.load(file, map_location=device, weights_only=True)
    except LIBRARY_ERRORS as error:
        reason = reason_of(error)
        raise InputError(
            f"expected tensors and plain values in {file}, found a corrupt or unsafe file, which was not run "
            f"({reason}): get it again"
        ) from error
    if not isinstance(content, Mapping):
        raise InputError(
            f"expected a state dict in {file}, found {type(content).__name__}: give the weights of a model"
        )
    _check_extent(content, file)
    return content


def _check_extent(content: Mapping[str, Any], file: Path) -> None:
    """Check that no tensor has more bytes than its file: a stride of 0 repeats one value without end.

    Raises:
        InputError: one has.
    """
    import torch  # slow, and ``layout`` does not need it

    size, waiting, seen = file.stat().st_size, [content], set()
    while waiting:
        holder = waiting.pop()
        if id(holder) in seen:
            continue
        seen.add(id(holder))
        for key, value in holder.items():
            if isinstance(value, Mapping):
                waiting.append(value)
            elif isinstance(value, torch.Tensor) and value.numel() * value.element_size() > size:
                raise InputError(
                    f"expected tensors that are in {file}, found {key!s:.60} of shape {list(value.shape)}, larger than "
                    "the file: get it again"
                )


def _foreign_names(file: Path) -> list[str]:
    """Check a PyTorch zip; returns the names of classes and functions in it that PyTorch itself does not allow.

    Raises:
        InputError: not a zip of PyTorch, a compressed zip (PyTorch does not compress), or a TorchScript program.
    """
    import torch  # slow, and ``layout`` does not need it

    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
        raise InputError(f"expected a complete PyTorch file, found a truncated one at {file} ({error})") from error
    if any("/code/" in entry.filename for entry in entries):
        raise InputError(f"expected weights in {file}, found a TorchScript program, which was not run: give weights")
    packed = sum(entry.compress_size for entry in entries)
    stored = all(e.compress_type == zipfile.ZIP_STORED and e.file_size == e.compress_size for e in entries)
    if not stored or packed > file.stat().st_size:
        raise InputError(
            f"expected a PyTorch file without compression, found one that would grow: {file}: get it again"
        )
    try:
        return list(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except LIBRARY_ERRORS as error:
        reason = reason_of(error)
        raise InputError(f"expected a PyTorch file at {file}, found a corrupt one ({reason}): get it again") from error
