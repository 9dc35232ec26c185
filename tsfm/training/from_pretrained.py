"""A forecaster with pretrained weights, for fine-tuning by a YAML config."""

from typing import Literal

import torch

from tsfm.models import Forecaster
from tsfm.training.finetuning import Recipe, trainable
from tsfm.weights import default, load_named
from tsfm_data.errors import InputError


class FromPretrained:
    """Builds a forecaster with pretrained weights for the context and horizon of the data.

    Args:
        model: a name of ``tsfm weights list``, or a model folder; by default the model that ships with the package.
        method: "full" trains all weights, "head" only the layers after the blocks, "lora" low-rank updates of the
            linear layers of the blocks, which are merged into the weights of the model folder.
        rank: rank of the updates of "lora".
    """

    def __init__(
        self, model: str | None = None, method: Literal["full", "lora", "head"] = "full", rank: int = 8
    ) -> None:
        self.model = model
        self.method = method
        self.rank = rank

    def __call__(self, context: int, horizon: int) -> Forecaster:
        """The forecaster.

        Raises:
            InputError: no such model, weights that do not fit this context or horizon, or peft is not installed.
        """
        with torch.device("cpu"):  # load to the CPU, whatever the default device is
            pretrained = load_named(default() if self.model is None else self.model)
            forecaster = type(pretrained)(context, horizon, pretrained.config)
        try:
            forecaster.load_state_dict(pretrained.state_dict())
        except RuntimeError as error:
            raise InputError(
                f"expected a context and horizon that {pretrained.name} allows, found {context} and {horizon}: "
                f"give --data.context {pretrained.context} --data.horizon {pretrained.horizon}"
            ) from error
        forecaster.pretraining, forecaster.name = pretrained.pretraining, pretrained.name
        trainable(forecaster, Recipe(self.method, rank=self.rank))
        return forecaster
