"""The head of the long-history decoder: a mixture of simple forecasts, corrected, and quantiles around it.

Shapes: R rows, Q patches to forecast, P steps of a patch, E periods, D candidates (simple forecasts of the same step),
K levels, C channels of a token, F features of a step.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from tsfm.models.zeroshot.folds import FAR, NEAR
from tsfm.models.zeroshot.history_tokens import LongHistoryConfig
from tsfm.models.zeroshot.recipe import ascending
from tsfm.nn import ResidualMLP, asinh


class QuantileHead(nn.Module):
    """Quantiles of a patch from a token, the distance to the patch, and the candidates for its steps.

    A layer that sees the whole patch gives every step some channels; a small network, the same for all steps, turns
    these and the candidates of the step into its quantiles.

    Args:
        config: sizes.
    """

    def __init__(self, config: LongHistoryConfig) -> None:
        super().__init__()
        self.levels, self.candidates, self.patch = len(config.levels), config.candidate_count, config.patch_size
        features = config.candidate_count + config.periods
        inputs = config.d_model + features * self.patch + 3 * config.candidate_count + 5
        self.whole = nn.Linear(inputs, config.hidden)
        self.steps = nn.Linear(config.hidden, self.patch * config.step_channels)
        self.projection = ResidualMLP(
            config.step_channels + features, config.step_hidden, self.levels + self.candidates, F.silu
        )
        self.trust = nn.Parameter(torch.tensor(4.0))  # weights fall with this power of the errors

    def forward(
        self,
        x_RQC: Float[Tensor, "R Q C"],
        ahead_Q: Int[Tensor, " Q"],
        candidates_DRQP: Float[Tensor, "D R Q P"],
        spread_ERQP: Float[Tensor, "E R Q P"],
        unit_R: Float[Tensor, " R"],
        trial_RD3: Float[Tensor, "R D 3"],
    ) -> Float[Tensor, "R Q P K"]:
        """Ascending quantiles on the model's scale, around a mixture of the candidates.

        Args:
            x_RQC: the tokens to forecast from.
            ahead_Q: patches between each token and the patch to forecast.
            candidates_DRQP: simple forecasts of its steps.
            spread_ERQP: spread of the cycles of each period.
            unit_R: unit of errors.
            trial_RD3: logarithm of the errors of the candidates on the history, as in ``Rows``.
        """
        near = 1 / (1 + ahead_Q.to(x_RQC.dtype))
        distance = torch.stack([near, near.log(), near.square(), near.sqrt()], -1)[None].expand(len(x_RQC), -1, -1)
        unit = unit_R[:, None, None]
        features = asinh(torch.cat([candidates_DRQP - candidates_DRQP[:1], spread_ERQP]) / unit)
        features_RQPF = features.movedim(0, -1).contiguous()
        log_unit = unit.log().expand(-1, len(ahead_Q), -1)
        trials = trial_RD3.flatten(1)[:, None].expand(-1, len(ahead_Q), -1)
        hidden = F.silu(self.whole(torch.cat([x_RQC, features_RQPF.flatten(2), distance, trials, log_unit], -1)))
        steps_RQPC = self.steps(hidden).unflatten(-1, (self.patch, -1))
        raw = self.projection(torch.cat([steps_RQPC, features_RQPF.to(steps_RQPC.dtype)], -1))
        # Levels first, so that each is contiguous in memory.
        raw, weight = raw.float().movedim(-1, 0).contiguous().split([self.levels, self.candidates])
        steps_QP = ahead_Q[:, None] * self.patch + torch.arange(self.patch, device=x_RQC.device)
        few, further, far = trial_RD3.movedim(0, 1)[..., None, None].unbind(2)
        before, beyond = (steps_QP**2 / (steps_QP**2 + border**2) for border in (NEAR, FAR))
        weight = weight - self.trust * torch.lerp(torch.lerp(few, further, before), far, beyond)
        m = self.levels // 2
        centre = raw[m : m + 1] * unit + (weight.softmax(0) * candidates_DRQP).sum(0, keepdim=True)
        return ascending(centre, raw, unit).movedim(0, -1)
