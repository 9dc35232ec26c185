"""The benchmark of large tables: a process above the limit is killed, and tables are what they are said to be."""

from pathlib import Path

import pandas as pd
import pytest
from scale import HORIZON, STEPS, Watched, draw, forecast, row, to_markdown, watch, write_long, write_tall, write_wide

from tsfm_data.errors import InputError
from tsfm_data.io import read_series

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel does not tell memory")


def test_a_process_above_the_limit_is_killed_and_its_memory_known() -> None:
    hungry = "x = bytearray(300 << 20); x[::4096] = b'1' * len(x[::4096]); import time; time.sleep(60)"
    found = watch(["-c", hungry], limit=150)
    assert found.status < 0
    assert found.seconds < 30
    assert found.peak > 150
    with pytest.raises(InputError, match="expected status 0, found -9"):
        row("a table", "a model", 1, found)
    found = watch(["-c", "import time; time.sleep(0.5); print('done')"], limit=150)
    assert (found.status, found.said) == (0, "done\n")
    assert 0 < found.anon < found.peak < 150


def test_tables_have_the_series_of_their_names(tmp_path: Path) -> None:
    for suffix in (".csv", ".parquet"):
        for order in ("by series", "by time"):
            write_long(tmp_path / f"long{suffix}", 7, order)  # type: ignore[arg-type]
            series = read_series(tmp_path / f"long{suffix}")
            assert (len(series), len(series.values), set(series.freqs)) == (7, 7 * STEPS, {"D"})
        write_tall(tmp_path / f"tall{suffix}", 3000)
        assert read_series(tmp_path / f"tall{suffix}").freqs == ("min",)
    write_wide(tmp_path / "wide.parquet", 5)
    assert len(read_series(tmp_path / "wide.parquet").variates) == 5


@pytest.mark.slow
def test_a_case_becomes_a_row_of_the_page_and_a_curve_of_the_figure(tmp_path: Path) -> None:
    write_long(tmp_path / "long.parquet", 30, "by time")
    found = forecast(tmp_path / "long.parquet", "seasonal-naive")
    made = row("long", "seasonal-naive", 30, found)
    assert len(pd.read_parquet(tmp_path / "forecast.parquet")) == 30 * HORIZON
    assert made["peak_mib"] > 100
    text = to_markdown([made], {"undisturbed": 10.0, "killed": 6.0, "rest": 5.0}, "a command")
    assert "10 % more" in text
    assert "| long" in text
    draw({30: found, 3: Watched(done=[(0, 100), (2, 200)])}, tmp_path / "scale.svg")
    assert (tmp_path / "scale.svg").stat().st_size > 1000
