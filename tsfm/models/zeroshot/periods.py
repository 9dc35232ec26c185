"""Seasonal periods of a series, found in its power spectrum.

Shapes: R rows, T steps, P periods, L lags, V = C J numbers of a block.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

LEAST_SCORE = 0.1  # lowest score of a period, for a history of any length
NOISE_SCORE = 1.25  # standard deviation of the score of noise times sqrt(observed steps): about sqrt(1 + 2 / 4)
FIRST_SHARE = 0.75  # the shortest lag with this share of the best score lies on the peak of the fundamental period
PEAK_WIDTH = 1.25  # that peak ends at this multiple of that lag
FEW_CYCLES = 2.0  # how much more a period must score if two cycles are observed instead of three
LONGER_SHARE = 0.97  # of the longer periods, the shortest with this share of the best autocorrelation is taken
FEW_PAIRS = 0.5  # least pairs observed at a lag, as a share of those expected if values were missing at random
WALK_SCORE = 1.5  # least score times cycles, so that of 100 random walks 2 to 4 have a season (else up to 26)
LONGER_GAIN = 0.03  # by how much the autocorrelation of a longer period must exceed that of the period before

# Seasons that the calendar suggests need little evidence: they are few, and nearly all series of people's days,
# weeks and years have them.
SEASON_SCORE = 0.05  # lowest score
SEASON_CYCLES = 1.6  # cycles from which on they must show in the spectrum
YOUNG_CYCLES = 1.1  # cycles from which on, with fewer than that, the calendar alone is enough
YOUNG_SCORE = 0.2  # the score of such a season; most that the spectrum shows have more
SEASON_GAIN = 0.02  # as LONGER_GAIN, for seasons
SEASON_SHARE = 0.5  # a season with this share of the best score is clear
NEAR = 0.03  # a peak within this share of a season is moved onto it
AS_GOOD = 0.9  # if the season has at least this share of its autocorrelation


def find_periods(
    x_RT: Float[Tensor, "R T"], observed_RT: Bool[Tensor, "R T"], count: int = 2, seasons: Sequence[int] = ()
) -> tuple[Int[Tensor, "R P"], Float[Tensor, "R P"]]:
    """The fundamental period of every row, and longer ones that explain more and more of it (a week, next to a day).

    The autocorrelation of the detrended row is computed from its power spectrum (Wiener-Khinchin), over observed pairs.
    A lag l scores ``acf(l) - (acf(l / 2) + acf(3 l / 2)) / 2``: high if the series repeats itself after l steps and not
    after half as many, about zero for a random walk, whose autocorrelation falls without a peak. At least two full
    periods must be observed, and ``SEASON_CYCLES`` of a season of the calendar.

    Args:
        x_RT: values, 0 where not observed.
        observed_RT: where there is a value.
        count: how many periods to look for, at least 1.
        seasons: periods in steps that the calendar suggests. Less evidence is asked of them than of others.

    Returns:
        The periods in steps and their scores, both 0 if there is none.
    """
    level_RT = detrend(x_RT.float(), observed_RT)
    both_RT = observed_RT & observed_RT.roll(1, 1)
    both_RT[:, 0] = False
    change_RT = torch.where(both_RT, level_RT - level_RT.roll(1, 1), 0.0)
    score, acf = score_peaks(torch.cat([level_RT, change_RT]), torch.cat([observed_RT, both_RT]))
    (score_RL, other_RL), (acf_RL, other_acf_RL) = (x.unflatten(0, (2, -1)) for x in (score, acf))
    either_RL = torch.maximum(acf_RL, other_acf_RL)
    lag_L = torch.arange(score_RL.shape[1], device=x_RT.device)
    length_R = length_of(observed_RT)
    cycles_RL = length_R[:, None] / lag_L.clamp(min=1)
    visible = [season for season in seasons if 2 <= season < len(lag_L) - round(NEAR * season)]
    # Values of a random walk swing slowly by themselves; its changes do not, nor does the calendar suggest it.
    is_swing_RL = score_RL * cycles_RL < WALK_SCORE
    for season in visible:
        is_swing_RL &= (lag_L - season).abs() > round(NEAR * season)
    score_RL = score_RL.masked_fill(is_swing_RL, 0.0)
    score_RL, acf_RL = torch.maximum(score_RL, other_RL), torch.where(other_RL > score_RL, other_acf_RL, acf_RL)
    more_RL = 1 + FEW_CYCLES * (3 - cycles_RL).clamp(min=0)
    is_season_L = torch.isin(lag_L, torch.tensor(visible, device=x_RT.device)) if visible else None
    for season in visible:
        score_RL, acf_RL = move_peak(score_RL, acf_RL, either_RL, season)
    # Expected maximum of the scores of white noise over all lags (extreme values of a normal distribution).
    count_R1 = observed_RT.sum(1, keepdim=True).clamp(min=4)
    noise_R1 = NOISE_SCORE * (2 * (count_R1 / 2).log() / count_R1).sqrt()
    least_R1 = noise_R1.clamp(min=LEAST_SCORE)
    usable_RL = (lag_L >= 2) & (cycles_RL >= 2) & (score_RL > least_R1 * more_RL)
    gain: float | Tensor = LONGER_GAIN
    if is_season_L is not None:
        usable_RL |= is_season_L & (cycles_RL >= SEASON_CYCLES) & (score_RL > SEASON_SCORE)
        gain = torch.where(is_season_L, SEASON_GAIN, LONGER_GAIN)
    score_RL = torch.where(usable_RL, score_RL, 0.0)
    first_R = (usable_RL & (score_RL >= FIRST_SHARE * score_RL.amax(1, keepdim=True))).float().argmax(1)
    peak_RL = (lag_L >= first_R[:, None]) & (lag_L <= PEAK_WIDTH * first_R[:, None])
    first_R = torch.where(peak_RL, score_RL, -1.0).argmax(1)
    if is_season_L is not None:
        first_R = prefer_season(first_R, score_RL, is_season_L)
    periods = [first_R]
    for _ in range(count - 1):
        gain_RL = acf_RL.gather(1, periods[-1][:, None]) + gain
        longer_RL = usable_RL & (2 * lag_L > 3 * periods[-1][:, None]) & (acf_RL > gain_RL)
        acf_of_longer_RL = torch.where(longer_RL, acf_RL, 0.0)
        best_R1 = acf_of_longer_RL.amax(1, keepdim=True)
        # A multiple of a period correlates about as much, and has fewer cycles.
        periods.append((acf_of_longer_RL >= LONGER_SHARE * best_R1).float().argmax(1) * (best_R1[:, 0] > 0))
    period_RP = torch.stack(periods, 1)
    score_RP = score_RL.gather(1, period_RP)
    return add_young_seasons(torch.where(score_RP > 0, period_RP, 0), score_RP, length_R, seasons)


def add_young_seasons(
    period_RP: Int[Tensor, "R P"], score_RP: Float[Tensor, "R P"], length_R: Int[Tensor, " R"], seasons: Sequence[int]
) -> tuple[Int[Tensor, "R P"], Float[Tensor, "R P"]]:
    """Periods and scores; free places get the seasons of the calendar that a history is too short to show.

    Args:
        period_RP: periods in steps, 0 for none; all of these at the end of a row.
        score_RP: their scores.
        length_R: steps of each history.
        seasons: seasons in steps.
    """
    place_P = torch.arange(period_RP.shape[1], device=period_RP.device)
    for season in sorted(season for season in seasons if season >= 2):
        is_young_R = (length_R >= YOUNG_CYCLES * season) & (length_R < SEASON_CYCLES * season)
        is_free_RP = is_young_R[:, None] & (place_P == (period_RP > 0).sum(1, keepdim=True))
        period_RP, score_RP = period_RP.masked_fill(is_free_RP, season), score_RP.masked_fill(is_free_RP, YOUNG_SCORE)
    return period_RP, score_RP


def move_peak(
    score_RL: Float[Tensor, "R L"], acf_RL: Float[Tensor, "R L"], either_RL: Float[Tensor, "R L"], season: int
) -> tuple[Float[Tensor, "R L"], Float[Tensor, "R L"]]:
    """Scores and autocorrelations with the highest peak near a season moved onto it, if it correlates about as much.

    Args:
        score_RL: scores.
        acf_RL: autocorrelations of the series or of its changes, whichever has the higher score.
        either_RL: the higher autocorrelation of the two.
        season: the season in steps.
    """
    width = round(NEAR * season)
    around = slice(season - width, season + width + 1)
    best_R1, place_R1 = score_RL[:, around].max(1, keepdim=True)
    peak_R1 = season - width + place_R1
    moves_R1 = (best_R1 > 0) & (either_RL[:, season, None] >= AS_GOOD * either_RL.gather(1, peak_R1))
    lag_L = torch.arange(score_RL.shape[1], device=score_RL.device)
    is_near_RL = moves_R1 & ((lag_L - season).abs() <= width)
    is_season_RL = moves_R1 & (lag_L == season)
    score_RL = torch.where(is_season_RL, best_R1, score_RL.masked_fill(is_near_RL, 0.0))
    return score_RL, torch.where(is_season_RL, acf_RL.gather(1, peak_R1), acf_RL)


def prefer_season(
    first_R: Int[Tensor, " R"], score_RL: Float[Tensor, "R L"], is_season_L: Bool[Tensor, " L"]
) -> Int[Tensor, " R"]:
    """The shortest season that is clear, instead of a longer period that is no season (7 days instead of 21)."""
    is_clear_RL = is_season_L & (score_RL > 0) & (score_RL >= SEASON_SHARE * score_RL.amax(1, keepdim=True))
    season_R = is_clear_RL.float().argmax(1)
    return torch.where(is_clear_RL.any(1) & ~is_season_L[first_R] & (season_R < first_R), season_R, first_R)


def score_peaks(
    x_RT: Float[Tensor, "R T"], observed_RT: Bool[Tensor, "R T"]
) -> tuple[Float[Tensor, "R L"], Float[Tensor, "R L"]]:
    """Score of every lag at a local maximum of the autocorrelation, 0 elsewhere; and the autocorrelation."""
    acf_RL = autocorrelation(x_RT, observed_RT)
    reach = acf_RL.shape[1] // 3  # half of the lags for which 3 l / 2 exists: even and odd lags, by slices
    start, end = acf_RL[:, :reach], acf_RL[:, 1 : reach + 1]
    half_RL = torch.stack([start, 0.5 * (start + end)], -1).flatten(1)
    start, middle, end = (acf_RL[:, i : 3 * reach : 3] for i in range(3))
    beyond_RL = torch.stack([start, 0.5 * (middle + end)], -1).flatten(1)
    acf_RL = acf_RL[:, : 2 * reach]
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
    """Autocorrelation at lags 0 to T - 1 over the observed pairs; rows are centred, 0 where not observed.

    It is 0 at lags with fewer than half of the pairs expected if values were missing at random: where nights are
    missing, some lags have only a few pairs of mornings and evenings.
    """
    # An exported graph uses matrix products: ONNX Runtime's Fourier transform takes eight times as long as PyTorch's.
    products = lag_products_by_matrices if torch.compiler.is_exporting() else lag_products
    if without_gaps(observed_RT):
        sum_RT = products(x_RT)
        pairs_RT = (length_of(observed_RT)[:, None] - torch.arange(x_RT.shape[1])).clamp(min=1)
    else:
        sum_RT, pairs_RT = products(torch.cat([x_RT, observed_RT.to(x_RT.dtype)])).unflatten(0, (2, -1))
        length_R1 = length_of(observed_RT)[:, None].clamp(min=1)
        share_R1 = observed_RT.sum(1, keepdim=True) / length_R1
        usual_RT = share_R1.square() * (length_R1 - torch.arange(x_RT.shape[1], device=x_RT.device))
        pairs_RT = pairs_RT.round()
        sum_RT = torch.where(pairs_RT >= FEW_PAIRS * usual_RT, sum_RT, 0.0)
        pairs_RT = pairs_RT.clamp(min=1)
    variance = x_RT.square().sum(1, keepdim=True) / observed_RT.sum(1, keepdim=True).clamp(min=1)
    return sum_RT / (pairs_RT * variance.clamp(min=1e-12))


def without_gaps(observed_RT: Bool[Tensor, "R T"]) -> bool:
    """Whether every row is observed from its first value on, so that its length gives the number of pairs per lag.

    Checked on a CPU only, where it costs nothing, and not in a compiled or exported graph, which must handle any input.
    """
    if observed_RT.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return bool((observed_RT[:, 1:] >= observed_RT[:, :-1]).all())


def lag_products(x_RT: Float[Tensor, "R T"]) -> Float[Tensor, "R L"]:
    """Sum of products of values l steps apart, for every lag l from 0 to T - 1."""
    size = 2 * x_RT.shape[1]
    spectrum = torch.fft.rfft(x_RT, n=size)
    return torch.fft.irfft(spectrum * spectrum.conj(), n=size)[:, : x_RT.shape[1]]


def lag_products_by_matrices(x_RT: Float[Tensor, "R T"]) -> Float[Tensor, "R L"]:
    """As ``lag_products``, by products with small matrices: a Cooley-Tukey transform of S * S values in two stages.

    I blocks of J = S steps: step S i + j. Frequency f + S g, with f up to S / 2 only (the others are their mirror
    images). C: real and imaginary part.
    """
    over_blocks, over_steps, to_steps, to_blocks = fourier_matrices(steps := x_RT.shape[1])
    size = to_steps.shape[1]
    x_RIJ = F.pad(x_RT, (0, over_blocks.shape[1] * size - steps)).unflatten(1, (-1, size))
    x_FRV = (over_blocks @ x_RIJ).unflatten(1, (-1, 2)).flatten(2).transpose(0, 1)
    real, imaginary = (x_FRV @ over_steps).square().chunk(2, -1)
    x_FRV = (real + imaginary) @ to_steps
    return (to_blocks @ x_FRV.transpose(0, 1).unflatten(2, (2, size)).flatten(1, 2)).flatten(1)[:, :steps]


def fourier_matrices(steps: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rotations [FC, I], [F, CJ, CG], [F, G, CJ] and [I, FC] for ``lag_products_by_matrices``, in float32.

    They are constants in an exported graph: ``tsfm.inference.exporting`` marks the function, because marking it here
    would load the compiler with every forecast.
    """
    size = math.isqrt(2 * steps - 1) + 1  # padded with at least as many zeros as steps, so that nothing wraps around
    step_J = torch.arange(size)
    f_F, i_I = step_J[: size // 2 + 1], torch.arange(-(-steps // size))
    frequency_FG = f_F[:, None] + size * step_J

    def turn(part: Tensor, whole: int) -> Tensor:
        angle = 2 * math.pi / whole * (part % whole).double()
        return torch.polar(torch.ones_like(angle), angle)

    def parts(x: Tensor, axis: int) -> Tensor:
        return torch.stack([x.real, x.imag], axis)

    over_blocks = parts(turn(-f_F[:, None] * i_I, size), 1).flatten(0, 1)
    forth_FJG = turn(-step_J[:, None] * frequency_FG[:, None], size**2)
    over_steps = torch.stack([parts(forth_FJG, 2), parts(1j * forth_FJG, 2)], 1).flatten(3).flatten(1, 2)
    weight_F = torch.where((f_F == 0) | (2 * f_F == size), 1.0, 2.0) / size**2
    to_steps = parts(weight_F[:, None, None] * turn(frequency_FG[..., None] * step_J, size**2), 2).flatten(2)
    to_blocks = parts(turn(i_I[:, None] * f_F, size).conj(), 2).flatten(1)
    return over_blocks.float(), over_steps.float(), to_steps.float(), to_blocks.float()
