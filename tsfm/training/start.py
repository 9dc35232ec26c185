"""Start a training from the weights of a model: what a YAML names as its forecaster to fine-tune."""

from typing import Literal

import torch

from tsfm.models import Forecaster
from tsfm.training.finetuning import Recipe, trainable
from tsfm.weights import default, load_named
from tsfm_data.errors import InputError


class Pretrained:
    """A forecaster with the weights of a model, at any context and horizon that these weights allow.

    Args:
        model: a name of ``tsfm weights list``, or a model folder; None takes the model that ships with the package.
        method: "full" trains all weights, "head" what turns tokens into forecasts alone, "lora" low-rank updates of
            the linear layers of the blocks, which the model folder holds added to the weights.
        rank: of the updates of "lora".
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
            InputError: no such model, one whose weights are for another context or horizon, or peft is missing.
        """
        with torch.device("cpu"):  # weights are read into memory, whatever the default device is
            start = load_named(default() if self.model is None else self.model)
            made = type(start)(context, horizon, start.config)
        try:
            made.load_state_dict(start.state_dict())
        except RuntimeError as error:
            raise InputError(
                f"expected a context and horizon that {start.name} allows, found {context} and {horizon}: "
                f"give --data.context {start.context} --data.horizon {start.horizon}"
            ) from error
        made.pretraining, made.name = start.pretraining, start.name
        trainable(made, Recipe(self.method, rank=self.rank))
        return made
