"""``tsfm bench inference``: zero-shot forecasts of many series beside chronos-forecasting."""

import statistics
from pathlib import Path


def inference(
    sizes: list[str] | None = None,
    threads: list[int] | None = None,
    output: Path = Path("benchmarks"),
    series: int = 1000,
    repeats: int = 5,
) -> None:
    """Time zero-shot forecasts beside chronos-forecasting's Chronos-Bolt at equal parameter count.

    Needs chronos-forecasting, of the extra "peers".

    Args:
        sizes: encoder or decoder; both by default.
        threads: numbers of CPU threads; by default 1 and 2.
        output: folder for inference.md and inference.json.
        series: how many to forecast.
        repeats: rounds of all sides, in turn; the median of the ratios counts.
    """
    from tsfm.bench.inference import REACH, run_table, to_markdown
    from tsfm.commands.bench import write
    from tsfm_data.errors import InputError, unknown_name

    for name in sizes or []:
        if name not in REACH:
            raise unknown_name("size", name, REACH)
    if series < 1 or repeats < 1 or min(threads or [1]) < 1:
        raise InputError(f"expected series, repeats and threads of at least 1, found {series}, {repeats} and {threads}")
    rows = run_table(sizes or list(REACH), threads or [1, 2], repeats, series)
    chosen = [f"--{name} {' '.join(map(str, x))}" for name, x in (("sizes", sizes), ("threads", threads)) if x]
    command = " ".join(["tsfm bench inference", *chosen, f"--series {series} --repeats {repeats}"])
    ratios: dict[str, list[float]] = {}
    for row in rows:
        ratios.setdefault(row["side"], []).append(row["cpu_speed_over_chronos"])
    speeds = {side: statistics.median(found) for side, found in ratios.items()}
    summary = {"cpu_speed_over_chronos": speeds, "command": command}
    write(output, "inference", rows, summary, to_markdown(rows, series, command))
