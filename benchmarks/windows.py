"""Gathering of training windows, compared with GluonTS's instance splitter in one process on one thread.

Run it by ``python benchmarks/windows.py``.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from common import run, write
from tabulate import tabulate

START, FREQ = "2020-01-01", "h"


def measure(
    series: int = 1000,
    rows: int = 2000,
    context: int = 512,
    horizon: int = 96,
    batch_size: int = 32,
    batches: int = 50,
    repeats: int = 3,
) -> list[dict[str, Any]]:
    """Time shuffled training windows of hourly series, without and with calendar features on both sides.

    Our loader gives past, future, both observed masks, item and cut. GluonTS runs its training loader over
    ``InstanceSplitter`` with one expected window per series and pass, stacked into tensors. With calendar features,
    ``AddTimeFeatures`` (hour, weekday, day of month, day of year) comes before it.

    Args:
        series: number of series.
        rows: rows per series.
        context: context steps per window.
        horizon: steps to forecast.
        batch_size: windows per batch.
        batches: batches per timing of GluonTS; ours takes twenty times as many.
        repeats: timings per loader; the best counts.

    Returns:
        Two rows, without and with calendar features. Each has windows per CPU second of both loaders, their ratio and
        the CPU seconds of our one-time set-up.
    """
    import torch

    values = list(np.random.default_rng(0).normal(size=(series, rows)))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        table = []
        for marks in (None, "h"):
            began = time.process_time()
            ours = _ours(values, context, horizon, batch_size, marks)
            setup = time.process_time() - began
            theirs = _gluonts(values, context, horizon, batch_size, batches, marks is not None)
            speed, peer = 0.0, 0.0
            for _ in range(repeats):  # in turn, so that other work on the machine affects both
                speed = max(speed, _windows_per_second(ours, 20 * batches))
                peer = max(peer, _windows_per_second(theirs, batches))
            table.append(
                {
                    "calendar_features": marks is not None,
                    "batch_size": batch_size,
                    "windows_per_s": round(speed),
                    "gluonts_windows_per_s": round(peer),
                    "ratio": round(speed / peer, 1),
                    "setup_s": round(setup, 2),
                }
            )
        return table
    finally:
        torch.set_num_threads(threads)


def _windows_per_second(loader: Callable[[], Iterator[int]], batches: int) -> float:
    """Windows per CPU second, without the first batch and its lazy set-up."""
    sizes = loader()
    next(sizes)
    began = time.process_time()
    windows = sum(islice(sizes, batches))
    return windows / (time.process_time() - began)


def _ours(
    values: list[np.ndarray], context: int, horizon: int, batch_size: int, marks: str | None
) -> Callable[[], Iterator[int]]:
    from tsfm_data.io import SeriesSet
    from tsfm_data.windows import WindowLoader, Windows

    data = SeriesSet.from_arrays("bench", values, FREQ, start=START)
    loader = WindowLoader(Windows.rolling(data, context, horizon, marks=marks), batch_size, shuffle=True)
    return lambda: (len(batch) for batch in loader)


def _gluonts(
    values: list[np.ndarray], context: int, horizon: int, batch_size: int, batches: int, features: bool
) -> Callable[[], Iterator[int]]:
    import pandas as pd
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using `json`-module", UserWarning)  # it wants a faster JSON module
        from gluonts.dataset.loader import TrainDataLoader
    from gluonts.time_feature import day_of_month, day_of_week, day_of_year, hour_of_day
    from gluonts.transform import AddTimeFeatures, Chain, ExpectedNumInstanceSampler, InstanceSplitter

    start = pd.Period(START, FREQ)
    data = [{"start": start, "target": v.astype(np.float32), "item_id": str(i)} for i, v in enumerate(values)]
    functions = [hour_of_day, day_of_week, day_of_month, day_of_year]
    steps: list[Any] = [AddTimeFeatures("start", "target", "time_feat", functions, horizon)] if features else []
    fields = ["time_feat"] if features else []
    sampler = ExpectedNumInstanceSampler(num_instances=1.0, min_past=context, min_future=horizon)
    splitter = InstanceSplitter(
        "target", "is_pad", "start", "forecast_start", sampler, context, horizon, time_series_fields=fields
    )
    wanted = ["past_target", "future_target", *(f"{side}_time_feat" for side in ("past", "future") if features)]

    def stack(entries: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {key: torch.from_numpy(np.stack([entry[key] for entry in entries])) for key in wanted}

    loader = TrainDataLoader(
        data,
        transform=Chain([*steps, splitter]),
        batch_size=batch_size,
        stack_fn=stack,
        num_batches_per_epoch=batches + 1,
    )
    return lambda: (len(batch["past_target"]) for batch in loader)


def main(output: Path = Path("benchmarks"), batch_size: int = 32) -> None:
    """Compare the gathering of training windows with GluonTS, without and with calendar features, on one thread.

    Args:
        output: folder for windows.md and windows.json.
        batch_size: windows per batch.
    """
    rows = measure(batch_size=batch_size)
    command = f"python benchmarks/windows.py --batch_size {batch_size}"
    text = "\n".join(
        [
            "# Window gathering",
            "",
            "Shuffled training windows as tensors, per second of CPU time on one thread. The data are 1,000 hourly",
            "series of 2,000 rows; context 512, horizon 96. Our loader is compared with GluonTS's training loader over",
            "its `InstanceSplitter`: the best of three timings each. `setup_s` is our one-time set-up in CPU seconds.",
            "",
            f"    {command}",
            "",
            tabulate(rows, headers="keys", tablefmt="github", intfmt=","),
            "",
        ]
    )
    write(output, "windows", rows, {"rows": len(rows), "command": command}, text)


if __name__ == "__main__":
    run(main)
