"""Named evaluation protocols: each defines windows, horizon, season, scale and metrics, to make scores comparable.

- ``lsf``: long-horizon forecasting as reported by iTransformer (and Informer before it): every window of the test rows
  with stride 1, values standardised by the training rows, mean over windows, steps and variates.
- ``gift``, ``gift-medium``, ``gift-long``: the three terms of GIFT-Eval: the last tenth of every series (at most 20
  adjacent windows; one for M4), seasons of GluonTS, errors pooled over all windows.
- ``table``: for your own tables: windows and metrics of GIFT-Eval, with the calendar season of the frequency (7 for
  days, 52 for weeks).
- ``chronos``: the Chronos zero-shot benchmark as computed by fev: the last window of every series, with the published
  horizon and season of each data set.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int64

from tsfm_data.errors import InputError, unknown_name
from tsfm_data.evaluation.metrics import LEVELS
from tsfm_data.io import normalise, season_length
from tsfm_data.windows import Split

GIFT_HORIZON = {"M": 12, "W": 8, "D": 30, "h": 48, "min": 48, "s": 60}
OWN_HORIZON = {**GIFT_HORIZON, "Y": 6, "Q": 8, "B": 30, "C": 30}
OTHER_HORIZON = 24  # of milliseconds, for instance, and of steps without a unit
M4_HORIZON = {"Y": 6, "Q": 8, "M": 18, "W": 13, "D": 14, "h": 48}
GIFT_SHARE, GIFT_MOST = 0.1, 20  # share of test rows in a series, most windows per series

# (horizon, season) of data sets, from fev's benchmarks/chronos_zeroshot/tasks.yaml and, for the M4 sets that are
# training data there, from chronos-forecasting's scripts/evaluation/configs/in-domain.yaml. The season replaces that of
# the frequency. Keys are patterns of catalogue names.
CHRONOS_TASKS = {
    r"ETTh.*": (24, 24),
    r"ETTm.*": (24, 96),
    r"exchange_rate": (30, 5),
    r"nn5": (56, 1),
    r"nn5_weekly": (8, 1),
    r"\w*traffic": (24, 24),
    r"\w*australian_electricity": (48, 48),
    r"ercot": (24, 24),
    r"(monash_)?weather_daily": (30, 1),
    r"\w*covid_deaths": (30, 1),
    r"\w*fred_md": (12, 12),
    r"\w*car_parts": (12, 12),
    r"\w*hospital": (12, 12),
    r"\w*cif_2016": (12, 12),
    r"dominick": (8, 1),
    r"m5": (28, 1),
    r"\w*tourism_monthly": (24, 12),
    r"\w*tourism_quarterly": (8, 4),
    r"\w*tourism_yearly": (4, 1),
    r"m4_hourly\w*": (48, 24),
    r"m4_daily\w*": (14, 1),
    r"m4_weekly\w*": (13, 1),
    r"\w*m[134]_monthly\w*": (18, 12),
    r"\w*m[134]_quarterly\w*": (8, 4),
    r"\w*m[134]_yearly\w*": (6, 1),
    r"m3_other": (8, 1),  # not in the benchmark: the competition's horizon
}
# Horizons for tables that are not in the benchmark: those of its data sets of the same frequency.
CHRONOS_HORIZON = {"Y": 6, "Q": 8, "M": 12, "W": 8, "D": 30, "B": 30, "h": 24, "min": 48}

# Reported name -> definition. As in GIFT-Eval, absolute errors are those of the median, squared ones of the mean.
POINT = {"MSE": "MSE[mean]", "MAE": "MAE[0.5]"}
PROBABILISTIC = {
    "MASE": "MASE[0.5]",
    "WQL": "WQL",
    "MSE": "MSE[mean]",
    "MAE": "MAE[0.5]",
    "RMSE": "RMSE[mean]",
    "sMAPE": "sMAPE[0.5]",
    "MAPE": "MAPE[0.5]",
    "ND": "ND[0.5]",
    "NRMSE": "NRMSE[mean]",
    "MSIS": "MSIS[alpha=0.05]",
    "pinball": "pinball",
    "coverage80": "interval_coverage[0.8]",
    "coverage_error": "coverage_error",
}


@dataclass(frozen=True)
class Profile:
    """One evaluation protocol.

    Attributes:
        name: name of the protocol.
        metrics: reported name -> definition, as for ``metrics.get_metric``.
        windows: all windows of the test rows, those of GIFT-Eval, or the last one.
        univariate: whether every variate is a separate series.
        standardise: whether errors are measured after standardisation by the training rows.
        naive_intervals: whether the published (seasonal) naive forecasts have intervals; without, they repeat the point
            forecast at every quantile level.
        context: history for predictors without a limit, at least one season; None: the whole history.
        multiplier: factor on the short horizon of the frequency.
        natural: whether seasons are those of the series instead of GluonTS's.
        levels: quantile levels of WQL and other metrics that average over levels.
        number: windows of each series; None takes the protocol's.
        step: steps from one window to the next; None takes the protocol's.
    """

    name: str
    metrics: Mapping[str, str]
    windows: Literal["rolling", "gift", "last"]
    univariate: bool = True
    standardise: bool = False
    naive_intervals: bool = True
    context: int | None = None
    multiplier: int = 1
    natural: bool = False
    levels: tuple[float, ...] = LEVELS
    number: int | None = None
    step: int | None = None

    def horizon(self, dataset: str, freq: str) -> int:
        """The published horizon of a data set.

        Raises:
            InputError: the protocol has none for this frequency.
        """
        unit = _unit(freq)
        if self.windows == "gift":
            steps = OWN_HORIZON.get(unit, OTHER_HORIZON) if self.natural else _gift_horizon(dataset, unit)
        elif self.windows == "last":
            steps = task[0] if (task := _chronos_task(dataset)) else CHRONOS_HORIZON.get(unit)
        else:
            steps = 96
        if steps is None:
            raise InputError(f"{dataset}: profile {self.name!r} has no horizon for frequency {freq!r}: give a horizon")
        return steps * self.multiplier

    def season(self, dataset: str, freq: str) -> int:
        """Steps per season, for seasonal naive and MASE."""
        task = _chronos_task(dataset) if self.windows == "last" else None
        return task[1] if task else season_length(freq)

    def cuts(
        self,
        dataset: str,
        item_ids: Sequence[str],
        lengths: Int64[np.ndarray, " items"],
        horizon: int,
        split: Split | None = None,
    ) -> tuple[Int64[np.ndarray, " W"], Int64[np.ndarray, " W"]]:
        """All windows to score.

        Args:
            dataset: name of the data set.
            item_ids: names of the series, for messages.
            lengths: rows of each series.
            horizon: steps to forecast.
            split: borders of the test rows; None counts windows from the end of each series.

        Returns:
            The series of each window, and its first row to forecast.

        Raises:
            InputError: a series is too short.
        """
        if split is not None:
            stride = self.step or 1
            first, last = split.cuts("test", 1, horizon)
            count = np.maximum((last - first) // stride + 1, 0)
            if self.number is not None:
                count = np.minimum(count, self.number)
                first = last - (count - 1) * stride
        else:
            stride = self.step or horizon
            number = self.number or (self.count(dataset, lengths, horizon) if self.windows == "gift" else 1)
            count = np.full(len(lengths), number)
            first = lengths - horizon - (number - 1) * stride
            if (first < 1).any():
                short = int(np.argmin(first))
                raise InputError(
                    f"{dataset}: profile {self.name!r} needs at least {lengths[short] - first[short] + 1} rows per "
                    f"series ({number} windows of {horizon} steps after some history), found {lengths[short]} in "
                    f"{item_ids[short]!r}: give a smaller horizon" + (" or fewer windows" if number > 1 else "")
                )
        items = np.repeat(np.arange(len(lengths)), count)
        step = np.arange(len(items)) - np.repeat(np.cumsum(count) - count, count)
        return items, np.asarray(first)[items] + step * stride

    def count(self, dataset: str, lengths: Int64[np.ndarray, " items"], horizon: int) -> int:
        """Windows per series under the rule of GIFT-Eval, which depends on the shortest series."""
        if _is_competition(dataset):
            return 1
        return min(GIFT_MOST, max(1, int(np.ceil(GIFT_SHARE * lengths.min() / horizon))))


def _is_competition(dataset: str) -> bool:
    """Data sets of M4, for which GIFT-Eval takes one window with the competition's horizon, and M3, treated alike."""
    return dataset.lower().startswith(("m3_", "m4_"))


def _gift_horizon(dataset: str, unit: str) -> int | None:
    if not _is_competition(dataset):
        return GIFT_HORIZON.get(unit)
    return task[0] if (task := _chronos_task(dataset)) else M4_HORIZON.get(unit)


def _chronos_task(dataset: str) -> tuple[int, int] | None:
    return next((task for pattern, task in CHRONOS_TASKS.items() if re.fullmatch(pattern, dataset)), None)


def _unit(freq: str) -> str:
    """The unit of a frequency: "h" of "2h", "W" of "W-SUN", "M" of "MS" and "ME", "Q" of "QE-DEC"."""
    unit = re.split("[-@]", re.sub(r"^\d+", "", normalise(freq)))[0]
    return unit[:-1] if unit in ("MS", "ME", "QS", "QE", "YS", "YE") else unit


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("lsf", POINT, "rolling", univariate=False, standardise=True, context=96),
        Profile("gift", PROBABILISTIC, "gift"),
        Profile("gift-medium", PROBABILISTIC, "gift", multiplier=10),
        Profile("gift-long", PROBABILISTIC, "gift", multiplier=15),
        Profile("table", PROBABILISTIC, "gift", natural=True),
        Profile("chronos", PROBABILISTIC, "last", naive_intervals=False),
    )
}


def get_profile(name: str) -> Profile:
    """The protocol of a name.

    Raises:
        InputError: no such protocol; the near names are listed.
    """
    if name not in PROFILES:
        raise unknown_name("profile", name, PROFILES)
    return PROFILES[name]
