"""Anomalies: values that forecasts from earlier values did not expect, with the rate of false alarms that is asked for.

The rows of a series are forecast in blocks of ``ahead`` steps, each from the values before it. The score of a value is
its distance from the median, in units of the distance between the median and the outer quantile on its side, or that of
a drift or of a frozen value if it is larger (``anomaly_scores.py``). Its p-value is the rank of the score among the
latest earlier scores, which needs no assumption on the forecasts if scores are exchangeable (conformal anomaly
detection: Laxhammar and Falkman 2010; Vovk et al. 2005). They rarely are, so earlier scores are multiplied by a factor
that rises with each flagged value and falls with all others, until the share of flagged values is the rate asked for
(adaptive conformal inference: Gibbs and Candès 2021). Nothing depends on later values.

Axes: T rows of an item, V variates, S series (every variate of every item), A steps of a block.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from tsfm.inference.anomaly_scores import (
    KINDS,
    LEAST_HISTORY,
    Memory,
    calibration_size,
    least_width,
    score_kinds,
)
from tsfm.inference.predictors import LONGEST_CONTEXT, quantiles_at, with_known_ahead
from tsfm_data.errors import InputError, check_sizes
from tsfm_data.evaluation import LEVELS, Predictor, bind
from tsfm_data.io import SeriesSet, append_rows, like, read_series
from tsfm_data.progress import progress
from tsfm_data.windows import Windows, item_lengths

if TYPE_CHECKING:
    import pandas as pd

RATE, AHEAD = 0.01, 8
OUTER = (LEVELS[0], 0.5, LEVELS[-1])  # the quantiles that scores are made of
FEW_WINDOWS = 32  # in a batch of fewer windows, each takes much longer
START, GAIN = 0.3, 0.2  # the logarithm of the factor at first, when limits are least sure; its rise by a flagged value
MOST_FACTOR = 5.0  # the factor is at most this, and at least its inverse
MOST_SCORE = 1.5  # a calibration score counts at most this many limits, so that gross errors do not hide later ones
PATIENCE = 24  # steps; if half of so many are flagged, they are the new normal


@dataclass
class Track:
    """What is known about the rows of one item.

    Attributes:
        raw: its values, NaN if missing.
        clean: the history of later forecasts: the values, but the expected ones in place of anomalies.
        fields: expected value, ends of the interval, score and p-value of each row; NaN if there is none.
        flags: which values are anomalies.
        kinds: index in ``KINDS`` of each anomaly, the first if it is of several; -1 elsewhere.
        memory: what later scores need of the complete blocks.
        scores: calibration scores of each variate, in order.
        factors: logarithm of the factor of each variate.
        cut: first row of the first block that is not complete.
    """

    raw: Float64[np.ndarray, "T V"]
    clean: Float64[np.ndarray, "T V"]
    fields: Float64[np.ndarray, "T V 5"]
    flags: Bool[np.ndarray, "T V"]
    kinds: Int64[np.ndarray, "T V"]
    memory: Memory
    scores: list[list[float]]
    factors: list[float]
    cut: int = LEAST_HISTORY

    @classmethod
    def empty(cls, variates: int) -> "Track":
        """A track without rows."""
        none = np.zeros((0, variates))
        return cls(
            none,
            none,
            np.zeros((0, variates, 5)),
            none.astype(bool),
            none.astype(np.int64),
            Memory.empty(variates),
            [[] for _ in range(variates)],
            [START] * variates,
        )

    def extend(self, raw: Float64[np.ndarray, "T V"]) -> None:
        """Take all rows, of which the first ones are known."""
        new = raw[len(self.raw) :]
        self.raw = raw
        self.clean = np.concatenate([self.clean, new])
        self.fields = np.concatenate([self.fields, np.full((*new.shape, 5), np.nan)])
        self.flags = np.concatenate([self.flags, np.zeros(new.shape, bool)])
        self.kinds = np.concatenate([self.kinds, np.full(new.shape, -1)])


@dataclass(eq=False)
class Detector:
    """Finds anomalies in series, and in rows that come later.

    Attributes:
        predictor: a model or a baseline.
        series: the series so far.
        rate: share of the values of clean series that are flagged.
        ahead: steps of a block, the most steps ahead that a value is forecast; more take less time.
        batch_size: largest number of windows per batch.
        reading: further options of ``read_series`` for later rows.
        tracks: what is known about each item.
    """

    predictor: Predictor
    series: SeriesSet
    rate: float = RATE
    ahead: int = AHEAD
    batch_size: int = 256
    reading: Mapping[str, Any] = field(default_factory=dict, repr=False)
    tracks: list[Track] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        check_rate(self.rate)
        check_sizes("give 8, for instance", ahead=self.ahead, batch_size=self.batch_size)
        if not len(self.series):
            raise InputError(f"expected at least one series in {self.series.source}, found none: give rows of values")
        self._advance()

    def update(self, rows: Any) -> Any:
        """Take rows that came later, and judge them as if they had been there from the beginning.

        Args:
            rows: a table with the columns of the first one and rows of any of its items, or of new ones; if that was an
                array, an array with as many series and variates; or a ``SeriesSet``.

        Returns:
            ``table`` for these rows, of the library of ``rows``, with columns named as there.

        Raises:
            InputError: other columns or another frequency, or rows that are not later.
        """
        self.series = append_rows(self.series, rows if isinstance(rows, SeriesSet) else self._read(rows))
        first = [len(track.raw) for track in self.tracks]
        self._advance()
        return like(rows, self.series.present(self.table(first)))

    def _read(self, rows: Any) -> SeriesSet:
        """Later rows as series, read like the first ones."""
        series, labels = self.series, self.series.labels
        if labels.integer and isinstance(rows, np.ndarray):
            if rows.size % series.values.shape[1] or rows.size % len(series):
                raise InputError(
                    f"expected new values of {len(series)} series of {len(series.variates)} variates, found shape "
                    f"{list(rows.shape)}: give an array as the first one, with new steps alone"
                )
            parts = [part.T for part in rows.reshape(len(series), len(series.variates), -1)]
            ends = [series.timestamps(i, extra=1)[-1].to_datetime64() for i in range(len(series))]
            later = SeriesSet.from_arrays("the array", parts, series.freqs, "1970", series.variates, series.item_ids)
            return replace(later, labels=labels, starts=np.array(ends))
        names = {"time_column": labels.time, "item_column": labels.item or "", "target": series.variates}
        names |= {"past_covariates": series.past_names, "known_covariates": series.known_names}
        if labels.item is None:
            names["name"] = series.item_ids[0]
        if not labels.integer:
            names["freq"] = series.freqs[0]
        return read_series(rows, later=True, **{**self.reading, **names})

    def table(self, first: Sequence[int] = ()) -> "pd.DataFrame":
        """All rows, series by series, with what was expected of them.

        Args:
            first: first row of each item that is shown; by default all rows.

        Returns:
            Columns item_id, timestamp, value; expected, low and high: the median forecast and the interval outside of
            which a value is flagged; score, p_value and anomaly; kind, one of ``KINDS`` for an
            anomaly. NaN if there was too little history.
        """
        single, width = self.series.univariate(), len(self.series.variates)
        begin = [*first, *[0] * (len(self.tracks) - len(first))]
        starts: Int64[np.ndarray, " S"] = np.repeat(np.array(begin, np.int64), width)
        lengths = item_lengths(single)
        rows = np.concatenate([np.arange(a, n) + o for a, n, o in zip(starts, lengths, single.offsets, strict=False)])
        frame = single.to_frame().iloc[rows, :2].reset_index(drop=True)
        shown = [(track, v, a) for (track, v), a in zip(self._columns(), starts, strict=True)]
        frame["value"] = np.concatenate([track.raw[a:, v] for track, v, a in shown])
        fields = np.concatenate([track.fields[a:, v] for track, v, a in shown])
        for name, column in zip(("expected", "low", "high", "score", "p_value"), fields.T, strict=True):
            frame[name] = column
        frame["anomaly"] = np.concatenate([track.flags[a:, v] for track, v, a in shown])
        names = np.array([*KINDS, ""], dtype=object)  # -1 is the last
        frame["kind"] = names[np.concatenate([track.kinds[a:, v] for track, v, a in shown])]
        return frame

    def notes(self) -> list[str]:
        """Notes, one line each: series without values, and series that are too short."""
        columns, lines = self._columns(), []
        empty = sum(not np.isfinite(track.raw[:, v]).any() for track, v in columns)
        if empty:
            lines.append(f"{empty} of {len(columns)} series have no value at all, so there is nothing to judge")
        needed = math.ceil(1 / self.rate - 1e-9) - 1
        counts = [len(track.scores[v]) for track, v in columns]
        short = sum(count < needed for count in counts) - empty
        if short:
            most = max(counts)
            lines.append(
                f"{short} of {len(columns)} series are too short for a rate of {self.rate:g}, which takes {needed} "
                f"scores before the first flag; the longest has {most}, so its p-values are at least "
                f"{1 / (most + 1):.2g}: give more rows, or a larger rate (--rate)"
            )
        return lines

    @property
    def judged(self) -> int:
        """Number of values that could have been flagged."""
        return sum(int(np.isfinite(track.fields[..., [1, 3]]).all(axis=-1).sum()) for track in self.tracks)

    def _columns(self) -> list[tuple[Track, int]]:
        """Track and variate of every series."""
        return [(track, v) for track in self.tracks for v in range(len(self.series.variates))]

    def _advance(self) -> None:
        """Judge the rows that no complete block contains."""
        series = self.series
        self.tracks += [Track.empty(len(series.variates)) for _ in range(len(series) - len(self.tracks))]
        for i, track in enumerate(self.tracks):
            track.extend(series.item(i))
        if self.predictor.covariates and series.known_names:
            series = with_known_ahead(series, self.ahead)
        for freq in dict.fromkeys(series.freqs):  # a batch has one season and one set of calendar features
            items = [i for i, other in enumerate(series.freqs) if other == freq]
            part, tracks = series.select(items), [self.tracks[i] for i in items]
            values = part.values.copy()
            for offset, track in zip(part.offsets, tracks, strict=False):
                values[offset : offset + len(track.clean)] = track.clean
            part = replace(part, values=values)
            # Windows of one length whatever the rows are now, so that forecasts do not change when more arrive.
            windows = Windows(
                part,
                self.predictor.context or LONGEST_CONTEXT,
                self.ahead,
                np.zeros(0, np.int64),
                np.zeros(0, np.int64),
                marks=self.predictor.marks,
                dtype=self.predictor.dtype,
                covariates=self.predictor.covariates,
            )
            self._judge(bind(self.predictor, part), windows, tracks)

    def _judge(self, predictor: Predictor, windows: Windows, tracks: list[Track]) -> None:
        """Judge the rows of items of one frequency, many blocks in a batch.

        The blocks of an item are forecast on the assumption that those before them contain no anomaly. If one does, the
        later forecasts are thrown away and made again, so each is made from the history as it then was.
        """
        waiting = {i: track.cut for i, track in enumerate(tracks) if track.cut < len(track.raw)}
        with progress(None, f"detect ({predictor.name})", total=len(waiting), unit="series") as bar:
            while waiting:
                each = max(1, FEW_WINDOWS // len(waiting))
                blocks = [(i, cut) for i, begin in waiting.items() for cut in self._cuts(tracks[i], begin, each)]
                forecasts = self._forecast(predictor, windows, blocks)
                stale: set[int] = set()
                for (i, cut), forecast in zip(blocks, forecasts, strict=True):
                    if i in stale:
                        continue
                    track = tracks[i]
                    changed = self._take(track, cut, forecast, windows.context)
                    waiting[i] = cut + self.ahead
                    if changed is not None:
                        windows.put(i, changed, track.clean[changed : cut + self.ahead])
                        stale.add(i)
                done = [i for i, cut in waiting.items() if cut >= len(tracks[i].raw)]
                for i in done:
                    del waiting[i]
                bar.update(len(done))

    def _cuts(self, track: Track, begin: int, most: int) -> range:
        """First rows of the next blocks of an item."""
        return range(begin, min(len(track.raw), begin + most * self.ahead), self.ahead)

    def _forecast(
        self, predictor: Predictor, windows: Windows, blocks: list[tuple[int, int]]
    ) -> Float64[np.ndarray, "blocks A V 3"]:
        """The outer quantiles and the median of every block."""
        return quantiles_at(predictor, windows.at(*np.array(blocks).T), OUTER, self.batch_size)

    def _take(self, track: Track, cut: int, forecast: Float64[np.ndarray, "A V 3"], context: int) -> int | None:
        """Judge the rows of a block; learn from them if it is complete.

        Returns:
            The first row whose clean value has changed; None if there is none.
        """
        values = track.raw[cut : cut + self.ahead]
        here = slice(cut, cut + len(values))
        low, middle, high = np.moveaxis(forecast[: len(values)], -1, 0)
        least, enough = least_width(track.clean[max(0, cut - context) : cut])
        below, above = np.maximum(middle - low, least), np.maximum(high - middle, least)
        kinds, memory = score_kinds(values, track.raw[cut - 1], middle, below, above, track.memory)
        scores = np.where(enough, kinds.max(axis=0), np.nan)
        p_values, limits = np.full(scores.shape, np.nan), np.full(scores.shape[1], np.nan)
        for v, known in enumerate(track.scores):
            factor = math.exp(track.factors[v])
            count, exceeding = calibration_size(len(known), self.rate)
            ordered = np.sort(known[len(known) - count :]) * factor
            p_values[:, v] = (1 + count - np.searchsorted(ordered, scores[:, v])) / (count + 1)
            if exceeding:
                limits[v] = ordered[count - exceeding]
        p_values[np.isnan(scores)] = np.nan
        flags = scores > limits  # that is, a p-value of at most the rate
        ends = middle - limits * below, middle + limits * above
        track.fields[here] = np.stack([np.where(enough, middle, np.nan), *ends, scores, p_values], -1)
        track.flags[here] = flags
        track.kinds[here] = np.where(flags, (kinds > limits).argmax(axis=0), -1)  # the first that is above
        if len(values) < self.ahead:
            return None
        track.cut, track.memory = cut + self.ahead, memory
        self._learn(track, scores, limits)
        if not flags.any():
            return None
        track.clean[here] = np.where(flags, middle, values)
        recent = slice(max(0, track.cut - PATIENCE), track.cut)
        usual = track.flags[recent].sum(axis=0) >= PATIENCE / 2
        track.clean[recent, usual] = track.raw[recent, usual]
        return recent.start if usual.any() else cut

    def _learn(self, track: Track, scores: Float64[np.ndarray, "A V"], limits: Float64[np.ndarray, " V"]) -> None:
        """Add the scores of the block before ``cut`` to the calibration, and change the factors."""
        for v, limit in enumerate(limits.tolist()):
            new = scores[np.isfinite(scores[:, v]), v]
            if limit > 0:
                error = float((new > limit).sum() - self.rate * len(new))
                most = math.log(MOST_FACTOR)
                track.factors[v] = min(max(track.factors[v] + GAIN * error, -most), most)
                new = np.minimum(new, MOST_SCORE * limit)
            track.scores[v] += new.tolist()


def check_rate(rate: object) -> None:
    """Check that a rate of false alarms is one.

    Raises:
        InputError: no number between 0 and 1.
    """
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < 1:
        raise InputError(f"expected a rate of false alarms between 0 and 1, found {rate!r:.40}: give --rate 0.01")
