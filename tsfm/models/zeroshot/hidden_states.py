"""What the zero-shot models make of a series before they forecast it: their tokens, one per patch.

Shapes: R rows (a series each), T steps, N patches, C channels.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tsfm.models.base import Forecaster
from tsfm.models.zeroshot.history_tokens import make_layout
from tsfm.models.zeroshot.long_history import LongHistoryDecoder
from tsfm.models.zeroshot.recipe import ZeroShotForecaster, fit_normaliser
from tsfm_data.errors import InputError


def window_steps(model: Forecaster) -> int:
    """Steps of a window of ``hidden_states``: as many as the model reads one by one, in whole patches.

    Raises:
        InputError: the model is no zero-shot model.
    """
    if isinstance(model, LongHistoryDecoder):
        return model.config.detail
    if isinstance(model, ZeroShotForecaster):
        return max(1, model.context // model.config.patch_size) * model.config.patch_size
    raise InputError(
        f"expected a zero-shot model, whose tokens are embeddings, found {model.name}: give tsfm-encoder-small"
    )


def hidden_states(
    model: Forecaster, x_RT: Float[Tensor, "R T"], seen_RT: Bool[Tensor, "R T"]
) -> tuple[Float[Tensor, "R N C"], Bool[Tensor, "R N"]]:
    """Tokens of windows after the last block, and which of them hold a value.

    A token sees what it sees in a forecast: the whole window in an encoder, earlier patches in a decoder. No row sees
    another.

    Args:
        model: a zero-shot model.
        x_RT: standardised values of ``window_steps`` steps, 0 where not seen.
        seen_RT: where there is a value.
    """
    seen_RN = seen_RT.unflatten(1, (-1, model.config.patch_size)).any(-1)
    if isinstance(model, LongHistoryDecoder):
        layout = make_layout(model.config, x_RT.shape[1], 0, x_RT.device)
        rows, _ = model.describe(x_RT, seen_RT, layout.steps, x_RT, ())
        return model.tokens(rows, layout, layout.steps, 0), seen_RN
    assert isinstance(model, ZeroShotForecaster)  # window_steps has checked it
    count = seen_RN.shape[1]
    described = model.trunk.describe_rows(fit_normaliser(x_RT, seen_RT, model.config)(x_RT), seen_RT, count)
    inputs = model.trunk.token_inputs(described, torch.zeros(count, dtype=torch.bool, device=x_RT.device))
    allowed = seen_RN[:, None].expand(-1, count, -1)
    return model.trunk.apply_stack(inputs, allowed.tril() if model.causal else allowed, 1, slice(None)), seen_RN
