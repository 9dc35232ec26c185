"""Regular timestamps that tests of tables share."""

import pandas as pd

DAYS = pd.date_range("2024-01-01", periods=70)
HOURS = pd.date_range("2024-01-01", periods=24 * 20, freq="h")
MONTHS = pd.date_range("2018-01-01", periods=60, freq="MS")
WEEKS = pd.date_range("2021-01-04", periods=100, freq="W-MON")
BERLIN = pd.date_range("2024-03-20", periods=40, tz="Europe/Berlin")
