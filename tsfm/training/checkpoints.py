"""Checkpoints that are written completely or not at all, wherever the folder for temporary files is."""

import io
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from tsfm_data.io import atomic_file


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
