"""Which images a model was trained on, so that none of them is taken for a held-out one later."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int
from safetensors.torch import save_file

from tsfm.weights import read_safetensors
from tsfm_data.errors import InputError
from tsfm_data.images import ImageSet

FILE = "seen.safetensors"


@dataclass(frozen=True)
class Seen:
    """Images that a model has seen, by ``ImageSet.digests``.

    Attributes:
        trained: those that it was trained on.
        chose: those that its checkpoint was chosen on.
    """

    trained: Int[np.ndarray, " N"] = field(default_factory=lambda: np.zeros(0, np.int64))
    chose: Int[np.ndarray, " M"] = field(default_factory=lambda: np.zeros(0, np.int64))

    def __len__(self) -> int:
        return len(self.trained) + len(self.chose)

    def masks(self, images: ImageSet) -> tuple[Bool[np.ndarray, " K"], Bool[np.ndarray, " K"]]:
        """Which of these images the model was trained on, and which of the others chose its checkpoint."""
        content = images.digests() if len(self) else np.zeros(len(images), np.int64)
        trained = np.isin(content, self.trained)
        return trained, np.isin(content, self.chose) & ~trained

    def parts(self, images: ImageSet) -> dict[str, ImageSet]:
        """The images by what the model used them for: "train", "val", and "test" for those that it has not seen."""
        trained, chose = self.masks(images)
        masks = {"train": trained, "val": chose, "test": ~(trained | chose)}
        return {name: images.select(np.flatnonzero(mask)) for name, mask in masks.items() if mask.any()}

    def warning(self, images: ImageSet) -> str | None:
        """One line if the model has seen some of the images that it is to be scored on."""
        trained, chose = (int(mask.sum()) for mask in self.masks(images))
        said = [f"was trained on {trained:,}"] * bool(trained) + [f"was chosen by {chose:,}"] * bool(chose)
        if not said:
            return None
        return f"{images.name}: the model {' and '.join(said)} of these {len(images):,} images: its scores are too good"

    def and_now(self, train: ImageSet, val: ImageSet) -> "Seen":
        """The same after training on one part and choosing on another."""
        return Seen(np.union1d(self.trained, train.digests()), np.union1d(self.chose, val.digests()))

    def save(self, folder: Path) -> None:
        """Write them into a model folder, if there are any."""
        if len(self):
            content = {"trained": self.trained, "chose": self.chose}
            save_file({name: torch.from_numpy(values) for name, values in content.items()}, folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> "Seen":
        """Those of a model folder.

        Raises:
            InputError: the file is corrupt.
        """
        if not (folder / FILE).is_file():
            return cls()
        found = read_safetensors(folder / FILE)
        if set(found) != {"trained", "chose"} or any(x.ndim != 1 or x.dtype != torch.int64 for x in found.values()):
            raise InputError(f"expected digests of images in {folder / FILE}, found others: get the folder again")
        return cls(found["trained"].numpy(), found["chose"].numpy())
