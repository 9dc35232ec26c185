"""``tsfm demo``: train iTransformer on real series that a dependency ships, score it, and write a report page.

It runs what a user would: ``tsfm fit`` on a CSV file with a YAML config, then the model folder through the same
functions as ``tsfm evaluate`` and ``tsfm forecast``. Images follow, in the same way, where their packages are there.
"""

import logging
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from tsfm import inference, nn, reports, weights
from tsfm.commands import demo_images
from tsfm.commands.demo_page import build_page, own_commands, score_rows, terminal_table
from tsfm_data import evaluation, io, windows
from tsfm_data.errors import InputError, check_sizes

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from tsfm.models import Forecaster
    from tsfm_data.evaluation import Report
    from tsfm_data.windows import ForecastDataModule

CONFIG = Path(__file__).with_name("demo.yaml")
# Of each training on series: days, hours, minutes, seconds; epochs and early stopping end it before.
MAX_TIME = "00:00:01:00"
METRICS = ("MASE", "WQL", "MAE", "coverage80")


@dataclass(frozen=True)
class Example:
    """One set of series to forecast.

    Attributes:
        name: of its file and run folder.
        title: heading on the page.
        table: its name in vega_datasets.
        source: who measured it.
        columns: timestamps first, then the variates.
        unit: of the values.
        context: steps of history in a window.
        horizon: steps to forecast.
        shown: variates to draw.
        history: steps of history to draw.
    """

    name: str
    title: str
    table: str
    source: str
    columns: tuple[str, ...]
    unit: str
    context: int
    horizon: int
    shown: tuple[str, ...]
    history: int

    def read(self) -> "pd.DataFrame":
        """The table, with the columns that are forecast.

        Raises:
            InputError: vega_datasets is not installed.
        """
        try:
            from vega_datasets import local_data
        except ModuleNotFoundError as error:
            raise InputError(
                "expected vega_datasets for the demo, found none: pip install 'tsfm-suite[demo]'"
            ) from error

        frame = getattr(local_data, self.table)()
        columns = list(self.columns) or [name for name in frame.columns if name != "nonfarm_change"]
        return frame[columns]


# Sizes were chosen by validation windows. The hourly temperatures that vega_datasets also holds are climate normals,
# averages over thirty years that repeat from day to day, and no test of a forecast.
EXAMPLES = (
    Example(
        name="us_employment",
        title="US employment",
        table="us_employment",
        source="US Bureau of Labor Statistics, seasonally adjusted",
        columns=(),
        unit="thousand jobs",
        context=24,
        horizon=6,
        shown=("nonfarm", "manufacturing", "construction", "government"),
        history=24,
    ),
    Example(
        name="seattle_weather",
        title="Seattle weather",
        table="seattle_weather",
        source="NOAA, daily extremes of the air temperature",
        columns=("date", "temp_max", "temp_min"),
        unit="°C",
        context=365,
        horizon=14,
        shown=("temp_max", "temp_min"),
        history=60,
    ),
)


@dataclass(frozen=True)
class Outcome:
    """What became of one example.

    Attributes:
        example: which one.
        series: number of its variates.
        report: scores of model and baselines.
        figure: the forecast of the last test window.
        facts: what the data are and how training went, for the page.
    """

    example: Example
    series: int
    report: "Report"
    figure: "Figure"
    facts: dict[str, str]


def demo(output: Path = Path("report/demo"), seed: int = 2023, max_epochs: int | None = None) -> None:
    """Train iTransformer on US employment and Seattle weather, iLLaMA on digits, and write a report page.

    Training takes a minute or so on two cores and three minutes at most. Nothing is downloaded. The page compares the
    forecasts of held-out windows with naive ones, and says how to do the same on a table of one's own.

    Args:
        output: folder of the page (index.html), its numbers (report.json), a picture (forecast.png), the tables and
            the trained models.
        seed: of weights, dropout and the order of windows; the same seed gives the same numbers.
        max_epochs: trains shorter, to try the command out.
    """
    check_sizes("leave it out for the full training", max_epochs=max_epochs)
    io.check_new([output], overwrite=True, sign="fit.yaml")  # an earlier demo is replaced
    tables = [example.read() for example in EXAMPLES]
    with io.atomic_file(output / "fit.yaml") as file:
        shutil.copyfile(CONFIG, file)
    again = ["tsfm", "demo", "--output", output, "--seed", seed]
    if max_epochs is not None:
        again += ["--max_epochs", max_epochs]
    commands = [shlex.join(map(str, again))] + [fit_command(each, output, seed, max_epochs) for each in EXAMPLES]
    outcomes = [run(*each, output) for each in zip(EXAMPLES, tables, commands[1:], strict=True)]
    report = sum((outcome.report for outcome in outcomes), evaluation.Report())
    images = demo_images.run(output, seed, max_epochs)
    if images is not None:
        commands.append(images[0])
    everything = report if images is None else report + demo_images.scores(images[1])
    everything.save(output / "report.json")
    reports.save_figure(outcomes[0].figure, output / "forecast.png")
    picture = None if images is None else images[1]
    reports.save_page(build_page(outcomes, report, commands, output, picture), output / "index.html")
    for outcome in outcomes:
        print("\n" + terminal_table(score_rows(outcome.report), outcome.example.title))
    if images is not None:
        print("\n" + terminal_table(demo_images.score_rows(images[1]), demo_images.TITLE))
    print(f"\npage: {output / 'index.html'}   numbers: {output / 'report.json'}")
    print("\nThe same on your own table:\n\n" + own_commands(output))


def run(example: Example, table: "pd.DataFrame", command: str, output: Path) -> Outcome:
    """Train, score and draw one example.

    Args:
        example: which one.
        table: its rows.
        command: the command that trains.
        output: folder of the demo.
    """
    from tsfm.commands.train import train  # Lightning takes seconds

    path, folder = output / f"{example.name}.csv", output / example.name
    with io.atomic_file(path) as file:
        table.to_csv(file, index=False)
    variates = table.shape[1] - 1
    print(
        f"\n{example.title}: {variates} series, {len(table)} steps; {example.context} steps in, {example.horizon} out"
    )
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier demo
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    train(shlex.split(command)[1:])
    module = windows.ForecastDataModule(str(path), example.context, example.horizon)
    module.setup()
    model = weights.load(folder / "model")
    return Outcome(
        example=example,
        series=variates,
        report=score(example, model, path),
        figure=draw(example, model, path, table),
        facts=data_facts(example, module) | training_facts(folder, model),
    )


def fit_command(example: Example, output: Path, seed: int, max_epochs: int | None) -> str:
    """The command that trains on an example."""
    words = ["tsfm", "fit", "--config", output / "fit.yaml", "--data.source", output / f"{example.name}.csv"]
    words += ["--data.context", example.context, "--data.horizon", example.horizon]
    words += ["--seed_everything", seed, "--data.seed", seed, "--trainer.max_time", MAX_TIME]
    words += ["--trainer.default_root_dir", output / example.name, "--overwrite"]
    if max_epochs is not None:
        words += ["--trainer.max_epochs", max_epochs]
    return shlex.join(map(str, words))


def score(example: Example, model: "Forecaster", path: Path) -> "Report":
    """Score model and baselines on every window of the test rows, all variates of a window together."""
    metrics = {name: evaluation.PROBABILISTIC[name] for name in METRICS}
    profile = evaluation.Profile(
        "demo", metrics, "rolling", univariate=False
    )  # the baselines are given all of the history
    model.name = "iTransformer"
    predictors = (model, evaluation.SeasonalNaive(), evaluation.Naive())
    return sum(
        (evaluation.evaluate(each, path, profile, horizon=example.horizon) for each in predictors), evaluation.Report()
    )


def draw(example: Example, model: "Forecaster", path: Path, table: "pd.DataFrame") -> "Figure":
    """The forecast of the last test window beside what came."""
    known = io.read_series(table.iloc[: -example.horizon])
    frame = inference.forecast_frame(model, known, example.horizon, nn.DEFAULT_LEVELS)
    return reports.plot_forecast(known, frame, io.read_series(table), example.shown, example.unit, example.history)


def data_facts(example: Example, module: "ForecastDataModule") -> dict[str, str]:
    """Where an example comes from and which of its rows train, validate and test."""
    series, times = module.series, module.series.timestamps(0)
    facts = {"source": example.source, "series": str(len(series.variates))}
    facts["rows"] = f"{series.length(0):,} (frequency {series.freqs[0]})"
    facts["window"] = f"{example.context} steps in, {example.horizon} steps out"
    for name, part in (("training", "train"), ("validation", "val"), ("test", "test")):
        first, last = getattr(module.split, part)[0]
        facts[f"{name} rows"] = f"{last - first:,}: {times[first]:%Y-%m-%d} to {times[last - 1]:%Y-%m-%d}"
    return facts


def training_facts(folder: Path, model: "Forecaster") -> dict[str, str]:
    """How training went, from its log: it stopped by itself, at the last epoch, or because its time was up."""
    import pandas as pd  # it would slow the help

    losses = pd.read_csv(next(folder.glob("logs/*/metrics.csv")))["val_loss"].dropna().tolist()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    callbacks = config["trainer"]["callbacks"]
    patience = next(c["init_args"]["patience"] for c in callbacks if c["class_path"].endswith("EarlyStopping"))
    best = losses.index(min(losses))
    if len(losses) >= config["trainer"]["max_epochs"]:
        end = "all that were asked for"
    elif len(losses) - 1 - best >= patience:
        end = f"then no better for {patience} epochs"
    else:
        end = "then its time was up: a faster machine gives other numbers"
    return {
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "epochs": f"{len(losses)}; {end}",
        "best epoch": f"{best + 1}, validation MSE {losses[best]:.4f} on standardised values",
        "seed": str(config["seed_everything"]),
    }
