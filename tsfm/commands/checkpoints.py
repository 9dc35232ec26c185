"""Checks checkpoints given on the command line, and names the last checkpoint after Ctrl-C."""

import pickle
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor

from tsfm_data.errors import InputError

NAMED = ("best", "last")  # names that Lightning resolves in the run's folder


def read_checkpoint(path: str) -> dict[str, Tensor]:
    """The names and shapes of the weights of a checkpoint, as meta tensors. Nothing in the file is executed.

    Raises:
        InputError: the file is missing, broken or not a checkpoint.
    """
    file = Path(path)
    if not file.is_file():
        checkpoints = sorted(map(str, file.parent.glob("*.ckpt"))) if file.parent.is_dir() else []
        hint = (
            f"there are {', '.join(checkpoints[:3])}"
            if checkpoints
            else "tsfm fit writes checkpoints/last.ckpt into its folder"
        )
        raise InputError(f"expected a checkpoint, found no file at {path}: {hint}")
    try:
        with warnings.catch_warnings(action="ignore"):
            return torch.load(file, map_location="meta", weights_only=True)["state_dict"]
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, ValueError, OSError) as error:
        raise InputError(
            f"expected a checkpoint written by tsfm fit, found a broken or foreign file at {path}: use another one"
        ) from error


def check_checkpoint(path: str, model: pl.LightningModule) -> None:
    """Check that a checkpoint has the weights of this model.

    Raises:
        InputError: a tensor is missing, superfluous or of another shape.
    """
    shapes = {key: tuple(value.shape) for key, value in read_checkpoint(path).items()}
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    different = sorted(key for key in expected.keys() | shapes.keys() if expected.get(key) != shapes.get(key))
    if different:
        raise InputError(
            f"expected tensor {different[0]} of shape {expected.get(different[0], 'none')}, found "
            f"{shapes.get(different[0], 'none')} in {path}: use the config that the checkpoint was trained with"
        )


def interruption_message(trainer: pl.Trainer) -> str:
    """The message after Ctrl-C: the newest checkpoint, and how to resume from it."""
    files = [c.last_model_path or c.best_model_path for c in trainer.checkpoint_callbacks]  # type: ignore[attr-defined]
    # Lightning sets the path before it writes the file.
    written = [file for file in files if file and Path(file).is_file()]
    last = max(written, key=lambda file: Path(file).stat().st_mtime_ns, default="")
    if not last:
        return f"interrupted in epoch {trainer.current_epoch}, before the first checkpoint: start again"
    return (
        f"interrupted in epoch {trainer.current_epoch}: {short_path(last)} is complete; to resume, repeat the "
        f"command with --ckpt_path {short_path(last)}"
    )


def short_path(path: str) -> Path:
    """A path for messages, relative to the current folder if it is inside."""
    full = Path(path)
    return full.relative_to(Path.cwd()) if full.is_relative_to(Path.cwd()) else full
