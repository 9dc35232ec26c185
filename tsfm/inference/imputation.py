"""Missing values of series, filled from both sides.

A gap is a run of missing values between two observed ones. Several members say what is in it: interpolation along a
line and along each season of the calendar (``interpolation.py``), and the forecasts of a model from the left and, of
the reversed series, from the right, as they are and moved so that each meets the value at the other end. Both forecasts
are averaged quantile by quantile; the weight of a side falls with its spread, and so with the distance from it. The
members are weighted by their errors on artificial gaps of the same length in the observed parts of the same series,
which also give the width of the interval (split conformal prediction: Papadopoulos et al. 2002). What was observed
stays as it is.

Axes: T rows of an item, V variates, G steps of a gap, H steps of a forecast, M members.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float64

from tsfm.inference.anomaly_scores import EXACT, LEAST_HISTORY, least_width
from tsfm.inference.interpolation import Gap, by_line, by_means, by_moved_means, by_season
from tsfm.inference.predictors import LONGEST_CONTEXT, quantiles_at, with_known_ahead
from tsfm_data.errors import InputError, check_sizes
from tsfm_data.evaluation import Predictor, bind
from tsfm_data.io import SeriesSet
from tsfm_data.progress import progress
from tsfm_data.windows import Windows, item_lengths

if TYPE_CHECKING:
    import pandas as pd

INTERVAL = 80.0  # percent
# Chosen on training sets with planted gaps (``benchmarks/impute.py --role train``).
TRIALS = 16  # artificial gaps per series and length
LEAST_SEASONS = 3  # a season is used if a series has at least so many of them
POWER = 8.0  # a member's weight is its error to the power of minus this


@dataclass(frozen=True, eq=False)
class Imputed:
    """Series whose gaps are filled.

    Attributes:
        series: the series as they were.
        values: their values with the medians in the gaps.
        low: lower end of the interval in the gaps; NaN elsewhere.
        high: upper end.
        gaps: the gaps.
        lines: how many of them are filled by interpolation alone.
    """

    series: SeriesSet
    values: Float64[np.ndarray, "rows V"]
    low: Float64[np.ndarray, "rows V"]
    high: Float64[np.ndarray, "rows V"]
    gaps: tuple[Gap, ...]
    lines: int

    @property
    def filled(self) -> Bool[np.ndarray, "rows V"]:
        """Which values were filled."""
        return np.isnan(self.series.values) & ~np.isnan(self.values)

    def table(self) -> "pd.DataFrame":
        """All rows, series by series.

        Returns:
            Columns item_id, timestamp, value; low and high, the interval of a filled value, else NaN; filled. A value
            is NaN if it is missing before the first or after the last value of its series.
        """
        series = self.series
        frame = series.univariate().to_frame().iloc[:, :2]
        spans = list(zip(series.offsets[:-1], series.offsets[1:], strict=True))
        for name in ("values", "low", "high", "filled"):
            part = getattr(self, name)
            column = np.concatenate([part[a:b].T.reshape(-1) for a, b in spans] or [np.zeros(0, part.dtype)])
            frame["value" if name == "values" else name] = column
        past = [np.tile(np.arange(b - a) < b - a - more, len(series.variates)) for (a, b), more in
                zip(spans, series.future_rows, strict=True)]  # fmt: skip
        return frame[np.concatenate(past or [np.zeros(0, bool)])].reset_index(drop=True)

    def notes(self) -> list[str]:
        """Notes, one line each, about what could not be filled or only poorly."""
        series, lines = self.series, []
        total, empty = len(series) * len(series.variates), series.unobserved()
        if not self.gaps:
            lines.append("no gap between two values, so nothing was filled")
        if empty:
            named = ", ".join(map(repr, empty[:3])) + (", ..." if len(empty) > 3 else "")
            lines.append(f"{len(empty)} of {total} series have no value at all and stay as they are: {named}")
        outer = 0
        for i in range(len(series)):
            seen = ~np.isnan(series.item(i))
            between = np.maximum.accumulate(seen) & np.maximum.accumulate(seen[::-1])[::-1]
            outer += int((~between & seen.any(axis=0)).sum())
        if outer:
            lines.append(
                f"{outer:,} missing values before the first or after the last one of their series are no gaps and stay "
                "missing; tsfm forecast continues a series"
            )
        long = sum(gap.size > np.isfinite(series.item(gap.item)[:, gap.variate]).sum() for gap in self.gaps)
        if long:
            lines.append(f"{long:,} of {len(self.gaps):,} gaps are longer than all values of their series together")
        if self.lines:
            lines.append(
                f"{self.lines:,} of {len(self.gaps):,} gaps are filled by interpolation alone: their series have too "
                f"few values (a forecast takes {LEAST_HISTORY}) to try a model"
            )
        return lines


def impute(
    predictor: Predictor, series: SeriesSet, interval: float = INTERVAL, batch_size: int = 256, bar: bool = True
) -> Imputed:
    """Fill the gaps of series.

    Args:
        predictor: a model or a baseline. One that reads the calendar forecasts from the left alone, because no calendar
            runs backwards.
        series: the series.
        interval: percent of the true values that should lie in the intervals.
        batch_size: largest number of windows per batch.
        bar: whether long work shows a progress bar.

    Raises:
        InputError: no series, or an interval that is not between 0 and 100 percent.
    """
    check_interval(interval)
    check_sizes("give 256, for instance", batch_size=batch_size)
    if not len(series):
        raise InputError(f"expected at least one series in {series.source}, found none: give rows of values")
    gaps = tuple(find_gaps(series))
    groups: dict[tuple[int, int, int], list[Gap]] = {}
    for gap in gaps:
        groups.setdefault((gap.item, gap.variate, gap.horizon), []).append(gap)
    trials = {key: trials_of(series.item(key[0])[:, key[1]], group) for key, group in groups.items()}
    wanted = [*gaps, *(trial for group in trials.values() for trial in group)]
    levels = (0.5 - interval / 200, 0.5, 0.5 + interval / 200)
    forecasts = two_sided(predictor, series, wanted, levels, batch_size, bar)
    values, low, high = series.values.copy(), *np.full((2, *series.values.shape), np.nan)
    lines = 0
    for key, group in groups.items():
        column = series.item(key[0])[:, key[1]]
        known = series.season_of(series.freqs[key[0]]), *series.seasons_of(series.freqs[key[0]])
        seasons = [season for season in dict.fromkeys(known) if 1 < season <= len(column) / LEAST_SEASONS]
        tried = [(trial, *members(column, trial, seasons, *forecasts[trial])) for trial in trials[key]]
        weights, factor = judge(column, tried, interval)
        for gap in group:
            guesses, widths = members(column, gap, seasons, *forecasts[gap])
            lines += bool(np.isnan(guesses[-1]).all() or weights is None or not weights[-2:].any())
            middle, ends = combine(guesses, widths * factor, weights)
            rows = slice(series.offsets[gap.item] + gap.begin, series.offsets[gap.item] + gap.end)
            values[rows, gap.variate] = middle
            low[rows, gap.variate], high[rows, gap.variate] = ends
    return Imputed(series, values, low, high, gaps, lines)


def check_interval(interval: object) -> None:
    """Check that an interval is a share in percent.

    Raises:
        InputError: no number between 0 and 100.
    """
    if isinstance(interval, bool) or not isinstance(interval, int | float) or not 0 < interval < 100:
        raise InputError(f"expected an interval between 0 and 100 percent, found {interval!r:.40}: give --interval 80")


def find_gaps(series: SeriesSet) -> Iterator[Gap]:
    """The runs of missing values between two observed ones, of every variate of every item."""
    for i in range(len(series)):
        for v, column in enumerate(series.item(i).T):
            seen = np.flatnonzero(np.isfinite(column))
            for k in np.flatnonzero(np.diff(seen) > 1):
                yield Gap(i, v, int(seen[k]) + 1, int(seen[k + 1]))


def trials_of(column: Float64[np.ndarray, " T"], gaps: Sequence[Gap]) -> list[Gap]:
    """Artificial gaps in a column, as long as the longest of ``gaps`` if there is room; else half as long, and so on.

    At least half of their values are observed, and so are the two around them. They are spread over the column.
    """
    seen = np.isfinite(column)
    counts = np.concatenate([[0], np.cumsum(seen)])
    size = max(gap.size for gap in gaps)
    while size:
        begin = np.arange(1, max(1, len(column) - size))
        known = counts[begin + size] - counts[begin]
        begin = begin[seen[begin - 1] & seen[begin + size] & (2 * known >= size)]
        if len(begin):
            rng = np.random.default_rng(len(begin))
            parts = np.array_split(begin, min(TRIALS, len(begin)))
            first = gaps[0]
            chosen = [int(rng.choice(part)) for part in parts]
            return [Gap(first.item, first.variate, a, a + size) for a in chosen]
        size //= 2
    return []


def two_sided(
    predictor: Predictor,
    series: SeriesSet,
    gaps: Sequence[Gap],
    levels: tuple[float, float, float],
    batch_size: int,
    bar: bool,
) -> dict[Gap, tuple[Float64[np.ndarray, "H 3"], Float64[np.ndarray, "H 3"]]]:
    """Forecasts from both sides of every gap, each in the direction of its time; NaN without enough history."""
    result = {gap: (np.full((gap.horizon, 3), np.nan), np.full((gap.horizon, 3), np.nan)) for gap in gaps}
    for backwards in (False, True) if predictor.marks is None else (False,):
        whole = reverse(series) if backwards else series
        lengths = item_lengths(whole)
        jobs: dict[tuple[str, int], dict[tuple[int, int], list[Gap]]] = {}
        for gap in gaps:
            cut = int(lengths[gap.item]) - gap.end if backwards else gap.begin
            history = whole.item(gap.item)[:cut, gap.variate]
            if np.isfinite(history).sum() >= LEAST_HISTORY:
                key = whole.freqs[gap.item], gap.horizon
                jobs.setdefault(key, {}).setdefault((gap.item, cut), []).append(gap)
        for (freq, horizon), places in progress(list(jobs.items()), f"impute ({predictor.name})", shown=bar):
            items = [i for i, other in enumerate(whole.freqs) if other == freq]
            part = whole.select(items)
            if predictor.covariates and part.known_names:
                part = with_known_ahead(part, horizon)
            number = {item: k for k, item in enumerate(items)}
            windows = Windows(
                part,
                min(predictor.context or LONGEST_CONTEXT, int(lengths.max())),
                horizon,
                np.array([number[item] for item, _ in places]),
                np.array([cut for _, cut in places]),
                marks=predictor.marks,
                dtype=predictor.dtype,
                covariates=predictor.covariates,
            )
            found = quantiles_at(bind(predictor, part), windows, levels, batch_size)
            for forecast, here in zip(found, places.values(), strict=True):
                for gap in here:
                    result[gap][backwards][:] = forecast[:, gap.variate]
    return result


def reverse(series: SeriesSet) -> SeriesSet:
    """The series with every item backwards in time, without rows of known covariates alone."""
    rows = [np.arange(series.length(i))[::-1] + series.offsets[i] for i in range(len(series))]
    order = np.concatenate(rows).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in rows])]).astype(np.int64)
    arrays: dict[str, Any] = {name: getattr(series, name)[order] for name in ("values", "past", "known")}
    return replace(series, offsets=offsets, future_rows=np.zeros_like(series.future_rows), **arrays)


def members(
    column: Float64[np.ndarray, " T"], gap: Gap, seasons: Sequence[int], left: Float64[np.ndarray, "H 3"],
    right: Float64[np.ndarray, "H 3"]
) -> tuple[Float64[np.ndarray, "M G"], Float64[np.ndarray, "2 G"]]:  # fmt: skip
    """What each member says of a gap, NaN if it says nothing; and half-widths of an interval, below and above.

    Args:
        column: the series; its values in the gap are not read.
        gap: the gap.
        seasons: steps of each season.
        left: quantiles of the forecast from the left, from the first step of the gap on.
        right: the same from the right, from its last step backwards.
    """
    size, ends, step = gap.size, (column[gap.begin - 1], column[gap.end]), np.arange(1, gap.size + 1)
    lines = [by_line(column, gap)]
    lines += [rule(column, gap, season) for season in seasons for rule in (by_season, by_means, by_moved_means)]
    sides = np.stack([left[:size], right[:size][::-1]])  # side, G, 3
    spread = sides[..., 2] - sides[..., 0]
    known = np.isfinite(spread[:, 0])
    hidden = np.concatenate([column[: gap.begin], column[gap.end :]])
    least = float(least_width(hidden[:, None])[0][0])
    if not known.any():  # that of a random walk between the two ends
        change = np.diff(hidden)
        deviation = float(np.sqrt(np.mean(change[np.isfinite(change)] ** 2))) if np.isfinite(change).any() else 0.0
        width = deviation * np.sqrt(step * step[::-1] / (size + 1)) + least
        return np.stack([*lines, step + np.nan, step + np.nan]), np.stack([width, width])
    spread = np.where(known[:, None], np.maximum(spread, least), np.inf)
    weights = (spread.min(axis=0) / spread) ** 2
    weights /= weights.sum(axis=0)
    # Each forecast meets the value at its other end if its error there is taken away, in part before.
    misses = ends[1] - left[size, 1], ends[0] - right[size, 1]
    moved = sides[..., 1] + np.stack([step * misses[0], step[::-1] * misses[1]]) / (size + 1)
    low, middle, high = (np.where(known[:, None, None], sides, 0.0) * weights[..., None]).sum(axis=0).T
    both = (np.where(known[:, None], moved, 0.0) * weights).sum(axis=0)
    return np.stack([*lines, middle, both]), np.maximum([middle - low, high - middle], least)


def judge(
    column: Float64[np.ndarray, " T"],
    tried: Sequence[tuple[Gap, Float64[np.ndarray, "M G"], Float64[np.ndarray, "2 G"]]],
    interval: float,
) -> tuple[Float64[np.ndarray, " M"] | None, float]:
    """Weights of the members, and the factor of the half-widths, by the errors in artificial gaps.

    Without any, there are no weights, and the factor is 1.
    """
    if not tried:
        return None, 1.0
    tried = [trial for trial in tried if np.isfinite(trial[1][-1]).all()] or tried  # those that try all members
    truth = np.concatenate([column[gap.begin : gap.end] for gap, _, _ in tried])
    seen = np.isfinite(truth)
    guesses = np.concatenate([guess for _, guess, _ in tried], axis=1)[:, seen]
    widths = np.concatenate([width for _, _, width in tried], axis=1)[:, seen]
    with np.errstate(over="ignore"):
        errors = np.abs(guesses - truth[seen]).mean(axis=1)  # NaN for a member that is silent in one of them
    errors[~np.isfinite(errors)] = np.inf
    best = max(float(errors.min()), float(np.abs(truth[seen]).max()) * EXACT, np.finfo(np.float64).tiny)
    weights = (np.maximum(errors, best) / best) ** -POWER
    weights /= weights.sum()
    middle, _ = combine(guesses, widths, weights)
    ratios = np.abs(truth[seen] - middle) / np.where(truth[seen] < middle, *widths)
    rank = min(len(ratios), int(np.ceil((len(ratios) + 1) * interval / 100)))
    return weights, float(np.sort(ratios)[rank - 1])


def combine(
    guesses: Float64[np.ndarray, "M G"], widths: Float64[np.ndarray, "2 G"], weights: Float64[np.ndarray, " M"] | None
) -> tuple[Float64[np.ndarray, " G"], Float64[np.ndarray, "2 G"]]:
    """The weighted mean of the members that say something, and an interval around it; else the line."""
    if weights is None:
        weights = np.zeros(len(guesses))
    shares = np.where(np.isfinite(guesses), weights[:, None], 0.0)
    total = shares.sum(axis=0)
    mean = (np.nan_to_num(guesses) * shares).sum(axis=0) / np.where(total > 0, total, 1.0)
    middle = np.where(total > 0, mean, guesses[0])
    return middle, np.stack([middle - widths[0], middle + widths[1]])
