"""Checkpoints that are written completely or not at all, and that another number of processes can resume."""

import io
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from tsfm_data.io import atomic_file

PROCESSES = "processes"  # key of their number in a checkpoint


def note_processes(checkpoint: dict[str, Any], task: pl.LightningModule) -> None:
    """Write what another number of processes needs to resume, in place: their number, and one for each parameter.

    An optimiser numbers its parameters group by group; sharded training reads the numbers as those of the model's
    parameters, in their order. Without shards, either order can be read.
    """
    checkpoint[PROCESSES] = task.trainer.world_size
    if task.device_mesh is not None:
        return  # the strategy has numbered them so
    place = {id(parameter): number for number, parameter in enumerate(task.parameters())}
    for optimizer, state in zip(task.trainer.optimizers, checkpoint.get("optimizer_states", []), strict=True):
        numbers = [place[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
        state["state"] = {numbers[key]: value for key, value in state["state"].items()}
        for group in state["param_groups"]:
            group["params"] = [numbers[key] for key in group["params"]]


def share_progress(checkpoint: dict[str, Any], task: pl.LightningModule) -> None:
    """Convert the batches done in the interrupted epoch to those of another number of processes, in place.

    Lightning counts the batches of one process. Twice the processes have half as many left, and half as many behind.

    Args:
        checkpoint: a loaded checkpoint; one without the number of its processes is left alone.
        task: the task that resumes.
    """
    processes = task.trainer.world_size
    progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_loop.batch_progress")
    before = checkpoint.get(PROCESSES, processes)
    if progress is None or before == processes:
        return
    current = progress["current"]
    done = current["processed"]
    for name in current:
        current[name] += done * before // processes - done


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint next to its target and renames it.

    Lightning writes to the folder of temporary files and moves the file from there. If that is another file system,
    moving is copying, and a process that is killed meanwhile leaves a broken checkpoint in place of a whole one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint; a path that is a URL goes to Lightning.

        Raises:
            OSError: the folder cannot be written, or the disk is full; an older checkpoint is then unchanged.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        content = io.BytesIO()  # torch.save hides that the disk is full
        torch.save(checkpoint, content)
        with atomic_file(path) as file:
            file.write_bytes(content.getbuffer())
