"""Zero-shot inference of many series: our models compared with Chronos-Bolt of chronos-forecasting at equal size.

The size "long" is the default model as it ships. All other weights are random, because time does not depend on them.
Each side runs in its own process, in turn with the others, so that a machine that becomes slower favours no side. The
result is the median over rounds of the ratio to the Chronos-Bolt with the same number of parameters in the same round.

    python benchmarks/inference.py
"""

import itertools
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from common import run, write
from jaxtyping import Float64
from tabulate import tabulate

from tsfm.inference import load_model
from tsfm.models import (
    ChronosBolt,
    ChronosBoltConfig,
    Forecaster,
    ZeroShotConfig,
    ZeroShotDecoder,
    ZeroShotEncoder,
)
from tsfm.models.chronos_bolt import from_reference
from tsfm.weights import registry
from tsfm_data.errors import InputError, unknown_name

if TYPE_CHECKING:
    import pandas as pd

LENGTH, HORIZON = 512, 48
BATCH = 256  # the default of chronos-forecasting for tables, and ours
SIZES = ("long", "encoder", "decoder")
REACH = {"encoder": 768, "decoder": 128}  # horizons of the models in the configs pretrain/zeroshot_*
LEVELS = tuple(round(0.1 * k, 1) for k in range(1, 10))
BOLT_REACH = 64  # of the published Chronos-Bolt models

PATHS = ("arrays", "table")
Run = Callable[[], object]


class Side(NamedTuple):
    """A forecaster of the comparison.

    Attributes:
        size: the zero-shot model with whose number of parameters it is built.
        model: "tsfm" for that model, "bolt" for our Chronos-Bolt, "chronos" for that of chronos-forecasting.
        bf16: whether matrix products are in bfloat16.
        steps: length of every history.
    """

    size: str
    model: str
    bf16: bool = False
    steps: int = LENGTH

    @property
    def name(self) -> str:
        """First column of the table."""
        own = registry.default() if self.size == "long" else f"zeroshot-{self.size}"
        names = {"tsfm": own, "bolt": "our Chronos-Bolt", "chronos": "chronos-forecasting"}
        return names[self.model] + (", bf16" if self.bf16 else "")


def sides_of(size: str, steps: int) -> list[Side]:
    """All sides with one number of parameters; the others are compared with the first."""
    sides = (("chronos", False), ("chronos", True), ("bolt", False), ("tsfm", False), ("tsfm", True))
    return [Side(size, model, bf16, steps) for model, bf16 in sides]


def own_model(size: str, steps: int) -> Forecaster:
    """The default model, or that of the config ``pretrain/zeroshot_SIZE`` with random weights."""
    if size == "long":
        return load_model().eval()
    torch.manual_seed(0)
    kind = {"encoder": ZeroShotEncoder, "decoder": ZeroShotDecoder}[size]
    return kind(steps, REACH[size], ZeroShotConfig()).eval()


def parameters(model: torch.nn.Module) -> int:
    """Number of parameters of a model."""
    return sum(p.numel() for p in model.parameters())


def bolt_sizes(count: int, steps: int) -> ChronosBoltConfig:
    """A Chronos-Bolt like the published ones (4 heads, ``d_ff`` about 4 ``d_model``) with ``count`` parameters."""

    def size_of(width: int, hidden: int) -> int:
        with torch.device("meta"):
            return parameters(ChronosBolt(steps, BOLT_REACH, config_of(width, hidden)))

    def config_of(width: int, hidden: int) -> ChronosBoltConfig:
        return ChronosBoltConfig(d_model=width, d_ff=hidden, d_kv=width // 4)

    above = next(width for width in itertools.count(32, 16) if size_of(width, 4 * width) > count)
    width = min(above - 16, above, key=lambda w: abs(size_of(w, 4 * w) - count))
    each = size_of(width, 2) - size_of(width, 1)
    return config_of(width, max(1, 1 + round((count - size_of(width, 1)) / each)))


def make_values(series: int, steps: int) -> Float64[np.ndarray, "series steps"]:
    """Seeded daily seasons with trend and noise, at many scales."""
    rng = np.random.default_rng(0)
    hours = np.arange(steps)
    season = np.sin(2 * np.pi * (hours / 24 + rng.random((series, 1))))
    slope, level, scale = rng.normal(size=(3, series, 1))
    return np.exp(scale) * (season + slope * hours / steps + 10 * level + rng.normal(size=(series, steps)))


def make_table(values: Float64[np.ndarray, "series steps"]) -> "pd.DataFrame":
    """The values as a long table of hourly series."""
    import pandas as pd

    times = pd.date_range("2024-01-01", periods=values.shape[1], freq="h")
    names = np.array([f"series-{i:05}" for i in range(len(values))])
    columns = {"item_id": np.repeat(names, len(times)), "timestamp": np.tile(times, len(values))}
    return pd.DataFrame({**columns, "target": values.reshape(-1)})


def prepare_own(model: Forecaster, bf16: bool, values: Float64[np.ndarray, "series steps"]) -> dict[str, Run]:
    """What a user of this suite calls: ``predict`` on arrays, ``forecast_frame`` on a table."""
    from tsfm.inference import forecast_frame
    from tsfm_data.io import read_series
    from tsfm_data.windows import Batch

    past, table = torch.from_numpy(values)[..., None], make_table(values)

    def precision() -> Any:
        return torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext()

    def arrays() -> None:
        for part in past.split(BATCH):
            seen = torch.ones((), dtype=torch.bool).expand(part.shape)
            with precision():
                model.predict(Batch(part, seen, HORIZON), LEVELS)

    def tables() -> "pd.DataFrame":
        with precision():
            return forecast_frame(model, read_series(table), HORIZON, LEVELS, BATCH)

    return {"arrays": arrays, "table": tables}


def check_chronos() -> None:
    """Check that chronos-forecasting is installed.

    Raises:
        InputError: it is not installed.
    """
    if find_spec("chronos") is None:
        raise InputError("expected chronos-forecasting to compare with, found none: pip install chronos-forecasting")


def make_chronos(config: ChronosBoltConfig, steps: int) -> Any:
    """The pipeline of chronos-forecasting with a random Chronos-Bolt of these sizes.

    Raises:
        InputError: it is not installed.
    """
    check_chronos()
    from chronos import ChronosBoltPipeline
    from chronos.chronos_bolt import ChronosBoltModelForForecasting
    from transformers import T5Config

    torch.manual_seed(0)
    own = {
        "context_length": steps,
        "prediction_length": BOLT_REACH,
        "input_patch_size": config.patch_size,
        "input_patch_stride": config.patch_size,
        "quantiles": list(LEVELS),
        "use_reg_token": True,
    }
    kinds: dict[str, Any] = {"decoder_start_token_id": 0, "chronos_config": own}
    sizes = T5Config(
        vocab_size=2,
        d_model=config.d_model,
        d_ff=config.d_ff,
        d_kv=config.d_kv,
        num_heads=config.heads,
        num_layers=config.layers,
        num_decoder_layers=config.decoder_layers,
        feed_forward_proj="relu",
        pad_token_id=0,
        **kinds,
    )
    return ChronosBoltPipeline(ChronosBoltModelForForecasting(sizes).eval())


def prepare_chronos(pipeline: Any, values: Float64[np.ndarray, "series steps"]) -> dict[str, Run]:
    """What a user of chronos-forecasting calls: ``predict_quantiles`` on arrays, ``predict_df`` on a table."""
    context, table = torch.from_numpy(values), make_table(values)

    def arrays() -> None:
        for part in context.split(BATCH):
            pipeline.predict_quantiles(part, prediction_length=HORIZON, quantile_levels=list(LEVELS))

    def tables() -> "pd.DataFrame":
        return pipeline.predict_df(table, prediction_length=HORIZON, quantile_levels=list(LEVELS), batch_size=BATCH)

    return {"arrays": arrays, "table": tables}


def prepare(side: Side, series: int) -> tuple[int, dict[str, Run]]:
    """The number of parameters of a side, and its functions."""
    values = make_values(series, side.steps)
    own = own_model(side.size, side.steps)
    if side.model == "tsfm":
        return parameters(own), prepare_own(own, side.bf16, values)
    pipeline = make_chronos(bolt_sizes(parameters(own), side.steps), side.steps)
    if side.model == "bolt":
        port = from_reference(pipeline.model.config.to_dict(), pipeline.model.state_dict()).eval()
        return parameters(port), prepare_own(port, side.bf16, values)
    if side.bf16:
        pipeline.model.to(torch.bfloat16)
    return parameters(pipeline.model), prepare_chronos(pipeline, values)


def memory_mib(field: str) -> float:
    """Memory of the process now ("VmRSS"), or its peak since ``forget_peak`` ("VmHWM"); Linux only."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no line {field} in /proc/self/status")


def forget_peak() -> None:
    """Reset the recorded peak of memory."""
    Path("/proc/self/clear_refs").write_text("5")


def serve(connection: Connection, side: Side, series: int, threads: int) -> None:
    """The process of one side: send the number of parameters, then run each requested path until None comes."""
    import warnings

    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    count, runs = prepare(side, series)
    connection.send(count)
    loaded = memory_mib("VmRSS")
    while (path := connection.recv()) is not None:
        forget_peak()
        clock, cpu = time.perf_counter(), time.process_time()
        runs[path]()
        clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
        connection.send((clock, cpu, memory_mib("VmHWM") - loaded))


class Timing(NamedTuple):
    """One run: wall time and CPU time of all threads in seconds, and peak memory in MiB beyond the loaded side."""

    seconds: float
    cpu: float
    mib: float


def run_table(
    sizes: list[str], threads: list[int], repeats: int = 5, series: int = 1000, steps: int = LENGTH
) -> list[dict[str, Any]]:
    """Time all sides of all sizes; one row per side, path and number of threads.

    Args:
        sizes: "encoder", "decoder" or "long".
        threads: numbers of CPU threads.
        repeats: counted rounds; one more comes first.
        series: number of series.
        steps: length of every history.

    Raises:
        InputError: chronos-forecasting is not installed.
    """
    check_chronos()
    rows = []
    for size in sizes:
        for count in threads:
            new = _time(sides_of(size, steps), count, repeats, series)
            print(*new, sep="\n", file=sys.stderr)
            rows += new
    return rows


def _time(sides: list[Side], threads: int, repeats: int, series: int) -> list[dict[str, Any]]:
    context = multiprocessing.get_context("spawn")
    workers = []
    try:
        for side in sides:
            here, there = context.Pipe()
            worker = context.Process(target=serve, args=(there, side, series, threads), daemon=True)
            worker.start()
            workers.append((side, here, worker))
        counts = [connection.recv() for _, connection, _ in workers]
        rows = []
        for path in PATHS:
            times = _rounds([connection for _, connection, _ in workers], path, repeats)
            rows += [
                _row(side, path, threads, series, count, mine, times[0])
                for side, count, mine in zip(sides, counts, times, strict=True)
            ]
        return rows
    finally:
        for _, connection, worker in workers:
            if worker.is_alive():
                connection.send(None)
            worker.join(10)


def _rounds(connections: list[Connection], path: str, repeats: int) -> list[list[Timing]]:
    """Timings of every side, in an order that is reversed each round; the first round does not count."""
    times: list[list[Timing]] = [[] for _ in connections]
    for number in range(repeats + 1):
        order = range(len(connections))
        for i in order if number % 2 else reversed(order):
            connections[i].send(path)
            timing = Timing(*connections[i].recv())
            if number:
                times[i].append(timing)
    return times


def _row(
    side: Side, path: str, threads: int, series: int, count: int, mine: list[Timing], peer: list[Timing]
) -> dict[str, Any]:
    ratios = [theirs.seconds / ours.seconds for ours, theirs in zip(mine, peer, strict=True)]
    cpu_ratios = [theirs.cpu / ours.cpu for ours, theirs in zip(mine, peer, strict=True)]
    return {
        "size": side.size,
        "side": side.name,
        "path": path,
        "threads": threads,
        "parameters": count,
        "series_per_s": series / statistics.median(t.seconds for t in mine),
        "series_per_cpu_s": series / statistics.median(t.cpu for t in mine),
        "speed_over_chronos": statistics.median(ratios),
        "speed_over_chronos_range": [min(ratios), max(ratios)],
        "cpu_speed_over_chronos": statistics.median(cpu_ratios),
        "peak_mib": statistics.median(t.mib for t in mine),
    }


def to_markdown(rows: list[dict[str, Any]], series: int, steps: int, command: str) -> str:
    """The page ``benchmarks/inference.md``."""
    head = ["model", "parameters", "path", "threads", "speed (range)", "by CPU time", "series / s"]
    head += ["series / CPU s", "peak MiB"]
    table = [
        [
            row["side"],
            f"{row['parameters']:,}",
            row["path"],
            row["threads"],
            "{:.2f} ({:.2f} to {:.2f})".format(row["speed_over_chronos"], *row["speed_over_chronos_range"]),
            f"{row['cpu_speed_over_chronos']:.2f}",
            f"{row['series_per_s']:,.0f}",
            f"{row['series_per_cpu_s']:,.0f}",
            f"{row['peak_mib']:.0f}",
        ]
        for row in rows
    ]
    text = [
        "# Zero-shot inference",
        "",
        f"{series:,} series of {steps:,} steps are forecast {HORIZON} steps ahead at nine quantile levels, on CPU. The",
        "reference is a Chronos-Bolt of chronos-forecasting in float32 with as many parameters: 4 + 4 layers, 4 heads,",
        f"patches of 16. All weights except those of {registry.default()} are random.",
        "",
        f"- arrays: `predict` or `predict_quantiles` on batches of {BATCH}.",
        "- table: `forecast_frame` or `predict_df`, from data frame to data frame, with all checks of the table.",
        "- speed: wall time of chronos-forecasting divided by that of the model. Above 1, the model is faster. It is",
        "  the median over rounds in turn, with its range. Each side runs in its own process.",
        "- by CPU time: the same for the CPU time of all threads.",
        "- peak: largest memory during a call, beyond the memory of the process before its first call.",
        "",
        "Equal numbers of parameters do not mean equal work. Most parameters of the zero-shot encoder act on every",
        "token. About half of those of a Chronos-Bolt are in a decoder with a single token. Those in the heads of",
        f"{registry.default()} and the zero-shot decoder also act on one token only.",
        "",
        f"    {command}",
        "",
        tabulate(table, head, tablefmt="github", disable_numparse=True),
        "",
    ]
    return "\n".join(text)


def main(
    sizes: list[str] | None = None,
    threads: list[int] | None = None,
    output: Path = Path("benchmarks"),
    series: int = 1000,
    repeats: int = 5,
    steps: int = LENGTH,
) -> None:
    """Compare the speed of zero-shot forecasts with Chronos-Bolt of chronos-forecasting at equal size.

    Needs chronos-forecasting, which the extra "peers" installs.

    Args:
        sizes: long (the default model), encoder or decoder; the first by default.
        threads: numbers of CPU threads; 1 and 2 by default.
        output: folder for inference.md and inference.json (inference_STEPS.md and .json if steps are given).
        series: number of series to forecast.
        repeats: rounds in which all sides take turns; the median of their ratios is reported.
        steps: length of every history.
    """
    for name in sizes or []:
        if name not in SIZES:
            raise unknown_name("size", name, SIZES)
    if series < 1 or repeats < 1 or min(threads or [1]) < 1:
        raise InputError(f"expected series, repeats and threads of at least 1, found {series}, {repeats} and {threads}")
    rows = run_table(sizes or ["long"], threads or [1, 2], repeats, series, steps)
    chosen = [f"--{name} {' '.join(map(str, x))}" for name, x in (("sizes", sizes), ("threads", threads)) if x]
    chosen += [f"--steps {steps}"] if steps != LENGTH else []
    command = " ".join(["python benchmarks/inference.py", *chosen, f"--series {series} --repeats {repeats}"])
    name = "inference" if steps == LENGTH else f"inference_{steps}"
    ratios: dict[str, list[float]] = {}
    for row in rows:
        ratios.setdefault(row["side"], []).append(row["cpu_speed_over_chronos"])
    speeds = {side: statistics.median(values) for side, values in ratios.items()}
    summary = {"cpu_speed_over_chronos": speeds, "command": command}
    write(output, name, rows, summary, to_markdown(rows, series, steps, command))


if __name__ == "__main__":
    run(main)
