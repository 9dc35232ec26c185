"""Seasons of a series found in its spectrum, as lags in steps.

Shapes: R rows, T steps, P periods, L lags.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

LEAST_SCORE = 0.1  # of a period, whatever the length
NOISE_SCORE = 1.25  # deviation of the score of noise times sqrt(observed steps): about sqrt(1 + 2 / 4)
FIRST_SHARE = 0.75  # the shortest lag with this share of the best score is on the fundamental bump
BUMP = 1.25  # a bump reaches so much further
FEW_CYCLES = 2.0  # how much more a period must score of which two cycles are seen, not three
LONGER_GAIN = 0.03  # what a longer period must add to the autocorrelation of the first one


def find_periods(
    x_RT: Float[Tensor, "R T"], observed_RT: Bool[Tensor, "R T"], count: int = 2
) -> tuple[Int[Tensor, "R P"], Float[Tensor, "R P"]]:
    """The fundamental period of every row, and longer ones that explain more of it (a week above a day).

    The autocorrelation of the detrended row comes from its power spectrum (Wiener-Khinchin), over pairs that are
    observed. A lag l scores ``acf(l) - (acf(l / 2) + acf(3 l / 2)) / 2``: high where the series repeats itself after l
    and not after half of it, about zero for a random walk, whose autocorrelation falls without a bump. Two full
    periods must lie within what is observed.

    Args:
        x_RT: values, 0 where not observed.
        observed_RT: where there is a value.
        count: how many periods to look for, 1 or 2.

    Returns:
        The periods in steps, 0 where there is none, and their scores, 0 where there is none.
    """
    level_RT = detrend(x_RT.float(), observed_RT)
    both_RT = observed_RT & observed_RT.roll(1, 1)
    both_RT[:, 0] = False
    change_RT = torch.where(both_RT, level_RT - level_RT.roll(1, 1), 0.0)
    score_RL, acf_RL = bumps(level_RT, observed_RT)
    other_RL, other_acf_RL = bumps(change_RT, both_RT)
    score_RL, acf_RL = torch.maximum(score_RL, other_RL), torch.where(other_RL > score_RL, other_acf_RL, acf_RL)
    lag_L = torch.arange(score_RL.shape[1], device=x_RT.device)
    cycles_RL = length_of(observed_RT)[:, None] / lag_L.clamp(min=1)
    # The largest of so many scores of noise as there are lags (extreme values of a normal distribution).
    count_R1 = observed_RT.sum(1, keepdim=True).clamp(min=4)
    noise_R1 = NOISE_SCORE * (2 * (count_R1 / 2).log() / count_R1).sqrt()
    least_RL = noise_R1.clamp(min=LEAST_SCORE) * (1 + FEW_CYCLES * (3 - cycles_RL).clamp(min=0))
    usable_RL = (lag_L >= 2) & (cycles_RL >= 2) & (score_RL > least_RL)
    score_RL = torch.where(usable_RL, score_RL, 0.0)
    first_R = (usable_RL & (score_RL >= FIRST_SHARE * score_RL.amax(1, keepdim=True))).float().argmax(1)
    bump_RL = (lag_L >= first_R[:, None]) & (lag_L <= BUMP * first_R[:, None])
    first_R = torch.where(bump_RL, score_RL, -1.0).argmax(1)
    found = [first_R]
    if count > 1:
        gain_R1 = acf_RL.gather(1, first_R[:, None]) + LONGER_GAIN
        longer_RL = usable_RL & (2 * lag_L > 3 * first_R[:, None]) & (acf_RL > gain_R1)
        found.append(torch.where(longer_RL, acf_RL, 0.0).argmax(1))
    period_RP = torch.stack(found, 1)
    score_RP = score_RL.gather(1, period_RP)
    return torch.where(score_RP > 0, period_RP, 0), score_RP


def bumps(
    x_RT: Float[Tensor, "R T"], observed_RT: Bool[Tensor, "R T"]
) -> tuple[Float[Tensor, "R L"], Float[Tensor, "R L"]]:
    """Score of every lag whose autocorrelation is a local maximum, 0 for the others; and the autocorrelation."""
    acf_RL = autocorrelation(x_RT, observed_RT)
    reach = acf_RL.shape[1] // 3 * 2  # lags with a point at 3 l / 2
    lag_L = torch.arange(reach, device=x_RT.device)
    half_RL = 0.5 * (acf_RL[:, lag_L // 2] + acf_RL[:, (lag_L + 1) // 2])
    beyond_RL = 0.5 * (acf_RL[:, lag_L * 3 // 2] + acf_RL[:, (lag_L * 3 + 1) // 2])
    acf_RL = acf_RL[:, :reach]
    peak_RL = torch.zeros_like(acf_RL, dtype=torch.bool)
    peak_RL[:, 1:-1] = (acf_RL[:, 1:-1] >= acf_RL[:, :-2]) & (acf_RL[:, 1:-1] >= acf_RL[:, 2:])
    return torch.where(peak_RL, (acf_RL - 0.5 * (half_RL + beyond_RL)).clamp(max=acf_RL), 0.0), acf_RL


def length_of(observed_RT: Bool[Tensor, "R T"]) -> Int[Tensor, " R"]:
    """Steps from the first observed one to the end of the row."""
    return observed_RT.shape[1] - (observed_RT.cumsum(1) == 0).sum(1)


def detrend(x_RT: Float[Tensor, "R T"], observed_RT: Bool[Tensor, "R T"]) -> Float[Tensor, "R T"]:
    """The residuals of a straight line through the observed values, 0 elsewhere."""
    weight = observed_RT.to(x_RT.dtype)
    count = weight.sum(1, keepdim=True).clamp(min=1)
    time = torch.linspace(-1, 1, x_RT.shape[1], device=x_RT.device).expand_as(x_RT)
    time = (time - (time * weight).sum(1, keepdim=True) / count) * weight
    x_RT = (x_RT - (x_RT * weight).sum(1, keepdim=True) / count) * weight
    slope = (time * x_RT).sum(1, keepdim=True) / time.square().sum(1, keepdim=True).clamp(min=1e-6)
    return x_RT - slope * time


def autocorrelation(x_RT: Float[Tensor, "R T"], observed_RT: Bool[Tensor, "R T"]) -> Float[Tensor, "R L"]:
    """Autocorrelation at lags 0 to T - 1 over the observed pairs; rows are centred, 0 where not observed."""
    size = 2 * x_RT.shape[1]

    def products(values: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(values, n=size).abs().square(), n=size)[:, : values.shape[1]]

    pairs = products(observed_RT.float()).round()
    variance = x_RT.square().sum(1, keepdim=True) / observed_RT.sum(1, keepdim=True).clamp(min=1)
    return products(x_RT) / (pairs.clamp(min=1) * variance.clamp(min=1e-12))
