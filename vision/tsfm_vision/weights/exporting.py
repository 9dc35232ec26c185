"""Image models as ONNX and ``torch.export`` files for any number of images, each checked against the model."""

import io
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tsfm_data.errors import InputError, reason_of
from tsfm_data.io import atomic_file
from tsfm_vision.weights.folders import data_config

TOLERANCE = 1e-3  # relative to the largest logit: float32 sums in another order


def export(model: nn.Module, classes: Sequence[str], file: Path, kind: Literal["onnx", "torch"] = "onnx") -> float:
    """Write a model, run the file on batches of 1 to 3 images, and return the largest difference from the model.

    Args:
        model: in evaluation mode, on the CPU; its weights need no gradients any more.
        classes: names of its classes, for the metadata of an ONNX file.
        file: path to write.
        kind: "onnx", or "torch" for ``torch.export.load``.

    Raises:
        InputError: the model cannot be traced for any number of images, an exporter is missing, or the file differs.
    """
    config = data_config(model.requires_grad_(False))
    x = torch.randn(3, *config["input_size"], generator=torch.Generator().manual_seed(0))
    shapes: Any = ({0: torch.export.Dim("batch", min=1)},)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"), atomic_file(file) as temporary:
        try:
            program = torch.export.export(model, (x[:2],), dynamic_shapes=shapes, strict=False)
        except Exception as error:  # of many kinds, by the library's own account
            raise InputError(
                f"expected a model that torch.export traces for any number of images, found {type(model).__name__} "
                f"({reason_of(error, 80)}): export another"
            ) from error
        known = {key: str(value) for key, value in config.items()} | {"label_names": "\n".join(classes)}
        run = write_onnx(program, temporary, known) if kind == "onnx" else write_torch(program, temporary)
        batches = [x[:count] for count in (1, 2, 3)]
        pairs = [(model(batch), run(batch)) for batch in batches]
        worst = max(
            float((found - logits).abs().max() / logits.abs().max().clamp_min(1e-12)) for logits, found in pairs
        )
        if not worst <= TOLERANCE:
            raise InputError(
                f"expected a file that repeats the model, found a difference of {worst:.2g} times the largest logit: "
                f"give --format {'torch' if kind == 'onnx' else 'onnx'}"
            )
    return worst


def write_torch(program: torch.export.ExportedProgram, file: Path) -> Callable[[Tensor], Tensor]:
    """Write the graph for ``torch.export.load``; returns the function that runs the file."""
    stream = io.BytesIO()  # a file name would need the suffix .pt2
    torch.export.save(program, stream)
    file.write_bytes(stream.getvalue())
    return torch.export.load(io.BytesIO(file.read_bytes())).module()


def write_onnx(program: torch.export.ExportedProgram, file: Path, known: dict[str, str]) -> Callable[[Tensor], Tensor]:
    """Write the graph as ONNX with what is known of it as metadata; returns the function that runs the file.

    Raises:
        InputError: an exporter is missing.
    """
    try:
        import onnxruntime

        made: Any = torch.onnx.export(
            program, dynamo=True, input_names=["images"], output_names=["logits"], verbose=False
        )
    except ImportError as error:
        raise InputError(
            "expected onnx, onnxscript and onnxruntime, found none: pip install onnx onnxscript onnxruntime, or use "
            "--format torch"
        ) from error
    made.model.metadata_props.update(known)
    for node in made.model.graph:  # the exporter records source lines, which are four fifths of a small file
        node.metadata_props.clear()
    file.write_bytes(made.model_proto.SerializeToString())
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0])
