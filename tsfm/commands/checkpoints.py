"""Checks checkpoints given on the command line, and names the last checkpoint after Ctrl-C."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytorch_lightning as pl
from torch import Tensor

from tsfm.weights import read_tensors
from tsfm_data.errors import LIBRARY_ERRORS, InputError, reason_of

NAMED = ("best", "last")  # names of checkpoints in the run's folder


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
        state = read_tensors(file, device="meta", foreign=False).get("state_dict")
    except InputError as error:
        raise InputError(
            f"expected a checkpoint written by tsfm fit, found a broken or foreign file at {path}: use another one"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"expected a checkpoint written by tsfm fit, found no weights at {path}: use another one")
    return dict(state)


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


def guard_restoring(trainer: pl.Trainer) -> None:
    """Make what Lightning raises on a checkpoint with the right weights, but other states, a mistake in the input.

    Raises:
        InputError: later, when the trainer restores such a checkpoint.
    """
    connector = trainer._checkpoint_connector

    def guarded(restore: Callable[..., None]) -> Callable[..., None]:
        def checked(*arguments: object, **options: object) -> None:
            try:
                restore(*arguments, **options)
            except InputError:
                raise
            except LIBRARY_ERRORS as error:
                raise InputError(
                    f"expected a checkpoint of this run, found one that cannot be restored ({type(error).__name__}: "
                    f"{reason_of(error)}): use another one"
                ) from error

        return checked

    for name in ("resume_start", "_restore_modules_and_callbacks", "restore_training_state"):
        setattr(connector, name, guarded(getattr(connector, name)))


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
