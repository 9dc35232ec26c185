"""Checkpoints as the command line names them: checked before anything is done, and named after Ctrl-C."""

import pickle
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor

from tsfm_data.errors import InputError

NAMED = ("best", "last")  # Lightning finds these in the run's folder itself


def read_checkpoint(path: str) -> dict[str, Tensor]:
    """The weights of a checkpoint, without their values. Nothing in the file is executed.

    Raises:
        InputError: it is not there, or not whole, or something else.
    """
    file = Path(path)
    if not file.is_file():
        near = sorted(map(str, file.parent.glob("*.ckpt"))) if file.parent.is_dir() else []
        hint = f"there are {', '.join(near[:3])}" if near else "tsfm fit writes checkpoints/last.ckpt into its folder"
        raise InputError(f"expected a checkpoint, found no file at {path}: {hint}")
    try:
        with warnings.catch_warnings(action="ignore"):
            return torch.load(file, map_location="meta", weights_only=True)["state_dict"]
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, ValueError, OSError) as error:
        raise InputError(
            f"expected a checkpoint written by tsfm fit, found a broken or foreign file at {path}: use another one"
        ) from error


def check_checkpoint(path: str, model: pl.LightningModule) -> None:
    """Check that a checkpoint holds the weights of this model.

    Raises:
        InputError: a tensor is missing, left over or of another shape.
    """
    found = {key: tuple(value.shape) for key, value in read_checkpoint(path).items()}
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
    if wrong:
        raise InputError(
            f"expected tensor {wrong[0]} of shape {expected.get(wrong[0], 'none')}, found "
            f"{found.get(wrong[0], 'none')} in {path}: use the config that the checkpoint was trained with"
        )


def interrupted(trainer: pl.Trainer) -> str:
    """What Ctrl-C left, and how to go on: from the newest checkpoint, whichever it is, so that least is done again."""
    files = [c.last_model_path or c.best_model_path for c in trainer.checkpoint_callbacks]  # type: ignore[attr-defined]
    # A path is noted before its file is there.
    whole = [file for file in files if file and Path(file).is_file()]
    last = max(whole, key=lambda file: Path(file).stat().st_mtime_ns, default="")
    if not last:
        return f"interrupted in epoch {trainer.current_epoch}, before the first checkpoint: start again"
    return (
        f"interrupted in epoch {trainer.current_epoch}: {shown(last)} is whole; go on with the same command and "
        f"--ckpt_path {shown(last)}"
    )


def shown(path: str) -> Path:
    """A path as short as it can be written."""
    full = Path(path)
    return full.relative_to(Path.cwd()) if full.is_relative_to(Path.cwd()) else full
