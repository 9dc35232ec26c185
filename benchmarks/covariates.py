"""What covariates gain in zero-shot forecasts of real series, and what useless ones cost.

    python benchmarks/covariates.py

Shapes: W windows.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import run, write
from jaxtyping import Int64
from tabulate import tabulate

from tsfm.inference import WithoutCovariates, load_predictor
from tsfm.weights import registry
from tsfm_data.errors import InputError
from tsfm_data.evaluation import LEVELS, Predictor, forecast_windows, window_scale
from tsfm_data.io import SeriesSet, catalog, read_series
from tsfm_data.windows import Windows

MODEL = registry.DEFAULT
NOISE = 5  # random walks as covariates


@dataclass(frozen=True)
class Case:
    """A data set, and the roles of its columns.

    Attributes:
        name: what the table says.
        source: name of the set. In a long table, the id "a/b" means column b of series a, and "b" column b.
        target: column to forecast.
        horizon: steps.
        known: columns whose values over the horizon are given, as if they had been forecast without error.
        past: columns given up to the present.
    """

    name: str
    source: str
    target: str
    horizon: int
    known: tuple[str, ...] = ()
    past: tuple[str, ...] = ()


AIR = "beijing_prsa_12sites"
WEATHER = ("TEMP", "PRES", "DEWP", "WSPM")
BICYCLES = ("temp", "hum", "windspeed", "holiday", "workingday")
CASES = (
    Case("bicycles: weather, holidays", "skf_bike_sharing_dataset_clean", "users", 24, BICYCLES),
    Case("bicycles in Washington: weather", "gk_bikesharing_dc", "count", 24, ("tmin", "tmax", "pn")),
    Case("cars: weather", "gk_metro_traffic_i94", "traffic_volume", 24, ("temp", "rain_1h", "snow_1h", "clouds_all")),
    Case("avocados: price", "rt_avocado", "total_bulk_and_bagged_units", 8, ("average_sales_price",)),
    Case("PM2.5 in Beijing: weather", AIR, "PM2.5", 24, WEATHER),
    Case("ozone in Beijing: weather", AIR, "O3", 24, WEATHER),
    Case("gas turbine: air, yield", "skf_turbine_emission", "NOX", 24, ("AT", "AP", "AH", "TEY")),
    Case("CO in Italy: weather", "uci_air_quality", "CO(GT)", 24, ("T", "RH", "AH")),
    Case("NO2 in Valencia: wind", "skf_air_quality_valencia_no_missing", "no2", 24, ("veloc.", "direc.")),
    Case("appliances: weather", "gk_appliances_energy", "Appliances", 24, ("T_out", "Press_mm_hg", "RH_out")),
    Case("warmest hour: coldest hour", "gk_temperature_melbourne", "Max_Temp", 14, ("Min_Temp",)),
    Case(
        "wet bulb: past of other weather",
        "wth_informer",
        "WetBulbCelsius",
        24,
        past=("DewPointCelsius", "RelativeHumidity", "WindSpeed", "StationPressure"),
    ),
    Case("wind farm: past of others", "gefcom2012_wp", "wp1", 24, past=tuple(f"wp{i}" for i in range(2, 8))),
    Case("PM2.5 in Beijing: past of other gases", AIR, "PM2.5", 24, past=("NO2", "CO", "PM10", "SO2")),
    Case(
        "claims: past of searches, stocks",
        "us_initial_claims",
        "claims",
        8,
        past=("trend.unemploy", "trend.filling", "trend.job", "sp500", "vix"),
    ),
    Case(
        "offices: past of other loads",
        "simbench_load",
        "G0-A_pload",
        96,
        past=("G0-M_pload", "G1-A_pload", "BL-H_pload"),
    ),
    Case("solar plant: past of others", "simbench_renewables", "PV1", 96, past=("PV2", "PV3", "PV4", "WP1")),
    Case(
        "PM10 in Valencia: past of gases",
        "skf_air_quality_valencia_no_missing",
        "pm10",
        24,
        past=("so2", "co", "no2", "o3"),
    ),
    Case("building: past of another", "skf_bdg2_hourly_sample", "building_1", 24, past=("building_2",)),
    Case(
        "petrol: past of other fuels",
        "skf_consumos_combustibles_mensual",
        "Gasolinas",
        12,
        past=("Gasoleos", "Fueloleos", "GLPs"),
    ),
    Case("industry: past of the economy", "fred_md_bvar", "INDPRO", 12, past=("RPI", "RETAILx", "W875RX1", "IPFINAL")),
    Case("metro in Madrid: past of buses", "skf_public_transport_madrid", "metro", 14, past=("bus", "road", "train")),
)


def read_case(case: Case) -> SeriesSet:
    """The series of a case, with its columns as covariates."""
    frame = pd.read_parquet(catalog.pull(case.source))
    columns = [case.target, *case.known, *case.past]
    if "item_id" in frame:
        names = frame["item_id"].astype(str).str.rpartition("/")
        frame = frame.assign(item=names[0], column=names[2])
        frame = frame[frame["column"].isin(columns)]
        frame = frame.pivot(index=["item", "timestamp"], columns="column", values="target").reset_index()
    else:
        frame = frame.rename(columns={"date": "timestamp"}).assign(item="")
    known = list(case.known)
    frame[known] = frame.groupby("item")[known].ffill()  # a report of the weather holds until the next one
    return read_series(
        frame[["item", "timestamp", *columns]].dropna(subset=known),
        time_column="timestamp",
        item_column="item",
        target=case.target,
        known_covariates=case.known,
        past_covariates=case.past,
        name=case.source,
    )


def with_walks(series: SeriesSet) -> SeriesSet:
    """The same series with random walks as known covariates."""
    walks = np.random.default_rng(0).normal(size=(len(series.values), NOISE)).cumsum(0)
    names = tuple(f"walk {i}" for i in range(NOISE))
    return replace(series, known=walks, known_names=names, past=walks[:, :0], past_names=())


def choose_windows(
    series: SeriesSet, horizon: int, most: int
) -> tuple[Int64[np.ndarray, " W"], Int64[np.ndarray, " W"]]:
    """Items and cuts of about ``most`` windows, spread over the series and their last thirds."""
    items = np.linspace(0, len(series) - 1, min(len(series), most)).astype(int)
    each = most // len(items)
    pairs = []
    for item in items:
        last = series.length(item) - horizon
        pairs += [(item, cut) for cut in np.unique(np.linspace(2 * last // 3, last, each).astype(int))]
    return np.array([item for item, _ in pairs]), np.array([cut for _, cut in pairs])


def scores(predictor: Predictor, series: SeriesSet, horizon: int, most: int) -> dict[str, float]:
    """MASE, WQL and coverage of 80 % intervals of forecasts of some windows, and their seconds of CPU time."""
    items, cuts = choose_windows(series, horizon, most)
    options: dict[str, Any] = {"dtype": predictor.dtype, "covariates": predictor.covariates}
    batch = Windows(series, predictor.context, horizon, items, cuts, **options).batch(range(len(items)))
    assert batch.future is not None
    assert batch.future_observed is not None
    truth = np.where(batch.future_observed, batch.future, np.nan)[..., None]
    begin = time.process_time()
    forecast = forecast_windows(predictor, replace(batch, future=None, future_observed=None), LEVELS)
    seconds = time.process_time() - begin
    error, level = truth - forecast.quantiles.numpy(), np.array(LEVELS)
    scale = window_scale(series, items, cuts, series.season_of(series.freqs[0]))[:, None]
    inside = (error[..., LEVELS.index(0.1)] >= 0) & (error[..., LEVELS.index(0.9)] <= 0)
    return {
        "mase": float(np.nanmean(np.abs(error[..., LEVELS.index(0.5)]) / scale)),
        "wql": float(
            2 * np.nansum(np.maximum(level * error, (level - 1) * error)) / len(level) / np.nansum(np.abs(truth))
        ),
        "coverage": float(inside[~np.isnan(truth[..., 0])].mean()),
        "seconds": seconds,
    }


def measure(model: str, most: int, cases: Sequence[Case] = CASES) -> list[dict[str, Any]]:
    """One row per case: scores without covariates, with its own ones, and with random walks in their place.

    Raises:
        InputError: the model takes no covariates.
    """
    predictor = load_predictor(model)
    if not predictor.covariates:
        raise InputError(f"expected a model that takes covariates, found {predictor.name}: name another")
    rows = []
    for case in cases:
        series = read_case(case)
        arms = {
            "without": (WithoutCovariates(predictor), series),
            "with": (predictor, series),
            "walks": (predictor, with_walks(series)),
        }
        row: dict[str, Any] = {"set": case.name, "known": bool(case.known), "horizon": case.horizon}
        rows.append(row | {name: scores(*arm, case.horizon, most) for name, arm in arms.items()})
    return rows


def ratios(rows: Sequence[dict[str, Any]], arm: str, metric: str) -> list[float]:
    """A metric of every case relative to that without covariates."""
    return [row[arm][metric] / row["without"][metric] for row in rows]


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Geometric means over cases, and the worst case, of errors and times relative to those without covariates."""
    summary: dict[str, Any] = {"sets": len(rows)}
    for arm in ("with", "walks"):
        for metric in ("mase", "wql", "seconds"):
            values = ratios(rows, arm, metric)
            summary[f"{metric} {arm}"] = {"mean": float(np.exp(np.mean(np.log(values)))), "most": max(values)}
    for arm in ("without", "with", "walks"):
        summary[f"coverage {arm}"] = float(np.mean([row[arm]["coverage"] for row in rows]))
    return summary


def table_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the page."""
    return {
        "series: covariates": row["set"],
        **{metric.upper(): f"{ratios([row], 'with', metric)[0]:.3f}" for metric in ("mase", "wql")},
        "80 % coverage": f"{row['without']['coverage']:.2f} -> {row['with']['coverage']:.2f}",
        "time": f"{ratios([row], 'with', 'seconds')[0]:.1f}",
        "walks: MASE": f"{ratios([row], 'walks', 'mase')[0]:.3f}",
        "walks: WQL": f"{ratios([row], 'walks', 'wql')[0]:.3f}",
        "walks: time": f"{ratios([row], 'walks', 'seconds')[0]:.1f}",
    }


def mean_row(name: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The means of some rows, as a row of the page."""
    whole = summarise(rows)
    return {
        "series: covariates": f"**mean, {name}**",
        **{metric.upper(): f"{whole[f'{metric} with']['mean']:.3f}" for metric in ("mase", "wql")},
        "80 % coverage": f"{whole['coverage without']:.2f} -> {whole['coverage with']:.2f}",
        "time": f"{whole['seconds with']['mean']:.1f}",
        **{f"walks: {metric.upper()}": f"{whole[f'{metric} walks']['mean']:.3f}" for metric in ("mase", "wql")},
        "walks: time": f"{whole['seconds walks']['mean']:.1f}",
    }


def to_markdown(rows: Sequence[dict[str, Any]], model: str, most: int, command: str) -> str:
    """The page ``benchmarks/covariates.md``."""
    known = [row for row in rows if row["known"]]
    past = [row for row in rows if not row["known"]]
    means = [mean_row("known ahead", known), mean_row("past only", past), mean_row("all", rows)]
    lines = [
        "# Covariates learnt in context",
        "",
        f"Forecasts of {model} with covariates, relative to the same forecasts without them: below 1 is better.",
        "The model was not trained with covariates; it learns their effect from each history.",
        f"About {most} windows per row, which names the series and, after the colon, the covariates. These are known",
        'over the horizon, as if they had been forecast without error; those after "past of" only up to the present.',
        "",
        "- time: CPU time, relative to that of forecasts without covariates.",
        f"- walks: {NOISE} random walks, known over the horizon, in place of the covariates. They have no effect.",
        "- mean: the geometric mean; of coverage, the arithmetic one.",
        "- past only: other columns of the same table, which end with the history. On average they gain nothing, so a",
        "  forecast does not look at other variates unless they are named as covariates.",
        "",
        "The sets are training sets, and how far an effect is trusted was chosen on them, so gains on new data may be",
        "smaller. The benchmark sets were not looked at.",
        "",
        f"    {command}",
        "",
        tabulate([*map(table_row, rows), *means], headers="keys", tablefmt="github", disable_numparse=True),
        "",
    ]
    return "\n".join(lines)


def main(model: str = MODEL, windows: int = 60, output: Path = Path("benchmarks")) -> None:
    """Compare zero-shot forecasts with covariates, without them, and with useless ones.

    Args:
        model: a name from tsfm weights list, or a model folder.
        windows: most windows per case.
        output: folder for covariates.md and covariates.json.

    Raises:
        InputError: fewer than one window.
    """
    if windows < 1:
        raise InputError(f"expected windows of at least 1, found {windows}: change it")
    rows = measure(model, windows)
    command = "python benchmarks/covariates.py" + (f" --model {Path(model).name}" if model != MODEL else "")
    command += f" --windows {windows}" if windows != 60 else ""
    write(output, "covariates", rows, summarise(rows), to_markdown(rows, Path(model).name, windows, command))


if __name__ == "__main__":
    run(main)
