"""Draw docs/forecast.png: a zero-shot forecast of 28 days of a real series by the default model.

    python docs/forecast.py [FILE]

The model was not trained on this series: NOAA's daily weather of Seattle, from the package vega_datasets.
"""

import sys
from pathlib import Path

from vega_datasets import local_data

import tsfm
from tsfm.reports import plot_forecast, save_figure
from tsfm_data.io import read_series

HORIZON, SHOWN = 28, 120

table = local_data.seattle_weather()[["date", "temp_max"]]
history = table.iloc[:-HORIZON]
frame = tsfm.load().forecast(history, horizon=HORIZON).rename(columns={"date": "timestamp"})
figure = plot_forecast(read_series(history), frame, read_series(table), ["temp_max"], "°C", SHOWN)
save_figure(figure, Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).with_name("forecast.png"))
