"""A forecaster of series that come with a picture each, such as the sales of a product with its photo.

Shapes: B windows, N tokens, C channels, I series, U different pictures, S pixels of a side.
"""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Float16, Int64
from torch import Tensor, nn

from tsfm.models import ITransformer, ITransformerConfig
from tsfm.nn import WindowScale
from tsfm.weights import image_folder
from tsfm_data.errors import InputError, check_model_sizes
from tsfm_data.io import SeriesSet
from tsfm_data.windows import Batch
from tsfm_vision.evaluation import read_pictures
from tsfm_vision.weights import check_arguments, create, data_config, load


@dataclass(frozen=True)
class PhotoConfig(ITransformerConfig):
    """Sizes of a photo forecaster: those of an iTransformer, and of the image model.

    Attributes:
        column: of the table: the picture of a series, the same in all of its rows. It is a path relative to the folder
            of the table, or the content of an image file; an empty cell is a series without a picture.
        backbone: name of an image model of timm, ours among them.
        sizes: its arguments, such as depths and channels.
        image: pixels of a side, S.
        frozen: whether the image model keeps its first weights.
    """

    column: str = "photo"
    backbone: str = "tsfm_poolformer_s12"
    sizes: dict[str, Any] = field(
        default_factory=lambda: {"depths": (1, 1, 1, 1), "dims": (32, 64, 96, 128)}, hash=False
    )
    image: int = 64
    frozen: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_model_sizes(self, "image")
        check_arguments(self.sizes, "sizes of the backbone")

    @classmethod
    def tiny(cls) -> "PhotoConfig":
        """Sizes for tests and first tries."""
        sizes = {"depths": (1, 1, 1, 1), "dims": (8, 16, 16, 16)}
        return cls(d_model=16, d_ff=16, heads=2, sizes=sizes, image=32)


class Pictures(NamedTuple):
    """The pictures of a set of series.

    Attributes:
        images: as the image model takes them. Half precision is finer than their 8 bits per channel.
        place: of each series' picture among them, -1 without one.
    """

    images: Float16[Tensor, "U 3 S S"]
    place: Int64[Tensor, " I"]


class PhotoForecaster(ITransformer):
    """An iTransformer with one more token: what an image model sees in the picture of the series.

    Both are trained together. The model takes batches only after ``bind`` has read the pictures of their series, which
    every command does. They stay in memory, 6 S^2 bytes for each different one.

    Args:
        context: steps of history.
        horizon: steps to forecast.
        config: sizes.
        start: name or folder of an image model of the same sizes, whose weights the image model begins with; by
            default they are random.

    Raises:
        InputError: an unknown image model, or sizes that it does not take or that ``start`` does not have.
    """

    model_type: ClassVar[str] = "photo"
    config_type: ClassVar[type] = PhotoConfig
    config: PhotoConfig

    def __init__(self, context: int, horizon: int, config: PhotoConfig = PhotoConfig(), start: str = "") -> None:
        super().__init__(context, horizon, config)
        backbone: Any = create(config.backbone, 0, config.image, 3, dict(config.sizes), {})
        if start:
            own = backbone.state_dict()
            state = {key: x for key, x in load(image_folder(start))[0].state_dict().items() if key in own}
            try:
                backbone.load_state_dict(state)
            except RuntimeError as error:
                raise InputError(
                    f"expected the backbone {config.backbone} to have the sizes of {start}, found others: give those "
                    "in its config.json"
                ) from error
        self.backbone = backbone.requires_grad_(not config.frozen)
        self.photo_in = nn.Linear(backbone.head_hidden_size, config.d_model)
        self.pictures: Pictures | None = None

    def train(self, mode: bool = True) -> "PhotoForecaster":
        """Set the mode; a frozen image model stays as it is in evaluation, or its batch norms would go on learning."""
        super().train(mode)
        self.backbone.train(mode and not self.config.frozen)
        return self

    def bind(self, series: SeriesSet) -> "PhotoForecaster":
        """The model with the pictures of these series, whose numbers its batches hold; the weights are shared.

        Raises:
            InputError: there is no column of pictures, or a picture is missing or broken.
        """
        column, where = self.config.column, f"{series.source}, column {self.config.column}"
        if series.static is None or column not in series.static:
            raise InputError(
                f"{where}: expected a picture per series, found none: add this column to a table with a column of "
                "ids, with the same path in all rows of a series"
            )
        cells = [x.strip() if isinstance(x, str) else x if isinstance(x, bytes) else "" for x in series.static[column]]
        found, bad = read_pictures([x for x in dict.fromkeys(cells) if x], Path(series.source).parent, self.taken)
        if bad:
            raise InputError(f"{where}: {bad[0]} ({len(bad)} such in all); or leave these cells empty")
        if not found:
            raise InputError(f"{where}: expected pictures, found only empty cells: give paths")
        number = {cell: k for k, cell in enumerate(found)}
        bound = copy.copy(self)
        place = torch.tensor([number.get(cell, -1) for cell in cells])
        bound.pictures = Pictures(torch.stack(list(found.values())).half(), place)
        return bound

    @property
    def taken(self) -> dict[str, Any]:
        """What the image model takes: timm's data config."""
        return data_config(self.backbone)

    def see(self, batch: Batch) -> Float[Tensor, "B 1 C"]:
        """The token of each window's picture. Each different picture of a batch passes the image model once.

        Raises:
            InputError: the model is not bound to the series of the batch.
        """
        if self.pictures is None or batch.item is None:
            raise InputError(
                f"model {self.name} takes a picture per series, found none: forecast a table with the column "
                f"{self.config.column}, or bind the model to the series"
            )
        place_U, of_B = self.pictures.place[batch.item.cpu()].unique(return_inverse=True)
        like = self.photo_in.weight
        x_UF = self.backbone(self.pictures.images[place_U].to(like))
        x_UF = x_UF * (place_U >= 0).to(like)[:, None]  # a series without a picture has a token, too: the bias
        return self.photo_in(x_UF)[of_B.to(like.device), None]

    def embed(self, batch: Batch) -> tuple[Float[Tensor, "B N C"], WindowScale | None]:
        """Tokens of the variates, of the calendar features and, last, of the picture; the scale to undo."""
        x_BNC, scale = super().embed(batch)
        return torch.cat([x_BNC, self.see(batch).to(x_BNC.dtype)], dim=1), scale
