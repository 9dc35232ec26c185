"""What covariates gain in zero-shot forecasts, on real series outside the benchmarks, and what useless ones cost.

Run it by ``python benchmarks/covariates.py``.
"""

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import run, write
from jaxtyping import Float64
from tabulate import tabulate

from tsfm.inference import WithoutCovariates, load_predictor
from tsfm_data.errors import InputError
from tsfm_data.evaluation import LEVELS, Predictor, forecast_windows, window_scale
from tsfm_data.io import SeriesSet, read_series
from tsfm_data.windows import Windows

WINDOWS = 40  # most windows per set
LEVELS_80 = (LEVELS.index(0.1), LEVELS.index(0.9))


@dataclass(frozen=True)
class Case:
    """A set, and the roles of its columns.

    Attributes:
        name: of the row in the table.
        file: name of the set. In a long table, an id "a/b" is the column b of the series a, an id "b" a column.
        target: column to forecast.
        known: columns whose values over the horizon are given, as if they had been forecast without error.
        past: columns given up to the present.
        horizon: steps.
    """

    name: str
    file: str
    target: str
    horizon: int
    known: tuple[str, ...] = ()
    past: tuple[str, ...] = ()


WEATHER = ("TEMP", "PRES", "DEWP", "WSPM")
CASES = (
    Case("bicycles, weather and holidays", "skf_bike_sharing_dataset_clean", "users", 24,
         ("temp", "hum", "windspeed", "holiday", "workingday")),
    Case("bicycles Washington, weather", "gk_bikesharing_dc", "count", 24, ("tmin", "tmax", "pn")),
    Case("road traffic, weather", "gk_metro_traffic_i94", "traffic_volume", 24,
         ("temp", "rain_1h", "snow_1h", "clouds_all")),
    Case("avocados, price", "rt_avocado", "total_bulk_and_bagged_units", 8, ("average_sales_price",)),
    Case("PM2.5 in Beijing, weather", "beijing_prsa_12sites", "PM2.5", 24, WEATHER),
    Case("ozone in Beijing, weather", "beijing_prsa_12sites", "O3", 24, WEATHER),
    Case("gas turbine, conditions", "skf_turbine_emission", "NOX", 24, ("AT", "AP", "AH", "TEY")),
    Case("CO in Italy, weather", "uci_air_quality", "CO(GT)", 24, ("T", "RH", "AH")),
    Case("NO2 in Valencia, wind", "skf_air_quality_valencia_no_missing", "no2", 24, ("veloc.", "direc.")),
    Case("household appliances, weather", "gk_appliances_energy", "Appliances", 24,
         ("T_out", "Press_mm_hg", "RH_out", "Windspeed", "Visibility")),
    Case("maximum temperature, minimum", "gk_temperature_melbourne", "Max_Temp", 14, ("Min_Temp",)),
    Case("wet-bulb temperature, past of others", "wth_informer", "WetBulbCelsius", 24, (),
         ("DewPointCelsius", "RelativeHumidity", "WindSpeed", "StationPressure")),
    Case("wind farm, past of the others", "gefcom2012_wp", "wp1", 24, (), ("wp2", "wp3", "wp4", "wp5", "wp6", "wp7")),
    Case("PM2.5 in Beijing, past of others", "beijing_prsa_12sites", "PM2.5", 24, (), ("NO2", "CO", "PM10", "SO2")),
    Case("metro in Madrid, past of buses and trains", "skf_public_transport_madrid", "metro", 14, (),
         ("bus", "road", "train")),
)


def table_of(case: Case, folder: Path) -> pd.DataFrame:
    """The rows of a set as a long table with one column per covariate."""
    frame = pd.read_parquet(folder / f"{case.file}.parquet")
    columns = [case.target, *case.known, *case.past]
    if "item_id" in frame:
        names = frame["item_id"].astype(str).str.rpartition("/")
        frame = frame.assign(item=names[0], column=names[2])
        frame = frame[frame["column"].isin(columns)]
        frame = frame.pivot(index=["item", "timestamp"], columns="column", values="target").reset_index()
    else:
        frame = frame.rename(columns={"date": "timestamp"}).assign(item="")
    frame = frame[["item", "timestamp", *columns]]
    # A covariate that is reported less often holds until the next report.
    frame[list(case.known)] = frame.groupby("item")[list(case.known)].ffill()
    return frame.dropna(subset=list(case.known))


def read_case(case: Case, folder: Path) -> SeriesSet:
    """The series of a case."""
    return read_series(table_of(case, folder), time_column="timestamp", item_column="item", target=case.target,
                       known_covariates=case.known, past_covariates=case.past, name=case.file)


def with_noise(series: SeriesSet, columns: int = 5, seed: int = 0) -> SeriesSet:
    """The same series with random walks as known covariates."""
    walk = np.random.default_rng(seed).normal(size=(len(series.values), columns)).cumsum(0)
    names = tuple(f"walk{i}" for i in range(columns))
    return replace(series, known=walk, known_names=names, past=walk[:, :0], past_names=())


def cuts_of(series: SeriesSet, horizon: int, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows spread over all series and their second halves."""
    each = max(1, WINDOWS // len(series))
    chosen = np.linspace(0, len(series) - 1, min(len(series), WINDOWS)).astype(int)
    pairs = []
    for item in chosen:
        last = series.length(item) - horizon
        first = min(last, max(last // 2, min(context, 2 * last // 3)))
        pairs += [(item, int(cut)) for cut in np.unique(np.linspace(first, last, each).astype(int))]
    items, cuts = zip(*pairs, strict=True)
    return np.array(items), np.array(cuts)


def scores(predictor: Predictor, series: SeriesSet, horizon: int) -> dict[str, float]:
    """MASE, WQL, coverage of 80 % intervals and seconds of forecasts of the windows."""
    items, cuts = cuts_of(series, horizon, predictor.context or 0)
    windows = Windows(series, predictor.context, horizon, items, cuts, dtype=predictor.dtype,
                      covariates=predictor.covariates)
    batch = windows.batch(range(len(items)))
    truth = np.where(batch.future_observed, batch.future, np.nan)
    blind = replace(batch, future=None, future_observed=None)
    begin = time.perf_counter()
    quantiles = forecast_windows(predictor, blind, LEVELS).quantiles.numpy()
    seconds = time.perf_counter() - begin
    error = truth[..., None] - quantiles
    loss = 2 * np.maximum(np.array(LEVELS) * error, (np.array(LEVELS) - 1) * error).mean(-1)
    absolute = np.abs(error[..., LEVELS.index(0.5)])
    scale = window_scale(series, items, cuts, series.season_of(series.freqs[0]))
    inside = (error[..., LEVELS_80[0]] >= 0) & (error[..., LEVELS_80[1]] <= 0)
    return {
        "mase": float(np.nanmean(absolute / scale[:, None])),
        "wql": float(np.nansum(loss) / np.nansum(np.abs(truth))),
        "coverage": float(inside[~np.isnan(truth)].mean()),
        "seconds": seconds,
    }


def measure(model: str, folder: Path, cases: Sequence[Case] = CASES) -> list[dict[str, Any]]:
    """One row per set: without covariates, with them, and with random walks."""
    predictor = load_predictor(model)
    rows = []
    for case in cases:
        series = read_case(case, folder)
        row: dict[str, Any] = {"set": case.name, "horizon": case.horizon}
        for name, which, given in (("without", WithoutCovariates(predictor), series), ("with", predictor, series),
                                   ("noise", predictor, with_noise(series))):
            row[name] = scores(which, given, case.horizon)
        rows.append(row)
        print(row['set'], *(f"{m}: {row['with'][m] / row['without'][m]:.4f} (noise {row['noise'][m] / row['without'][m]:.4f})" for m in ("mase", "wql", "coverage", "seconds")), f"cov {row['without']['coverage']:.3f} {row['with']['coverage']:.3f}", flush=True)
    return rows
if __name__ == "__main__":
    import sys
    rows=measure(sys.argv[1], Path(os.environ["TSFM_DATA"])/"train")
    for m in ("mase","wql"):
        print(m, np.exp(np.mean([np.log(r['with'][m]/r['without'][m]) for r in rows])), np.exp(np.mean([np.log(r['noise'][m]/r['without'][m]) for r in rows])))
