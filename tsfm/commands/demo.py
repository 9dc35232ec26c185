"""``tsfm demo``: trains iTransformer on real series that a dependency ships, scores it, and writes a report page.

It does what a user would: it runs ``tsfm fit`` on a CSV file with a YAML config, and uses the model folder with the
functions of ``tsfm evaluate`` and ``tsfm forecast``. The same follows with images, if their packages are installed.
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
from tsfm_data.output import say

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from tsfm.models import Forecaster
    from tsfm_data.evaluation import Report
    from tsfm_data.windows import ForecastDataModule

CONFIG = Path(__file__).with_name("demo.yaml")
# Time limit of each training on series (days, hours, minutes, seconds); usually it ends earlier.
MAX_TIME = "00:00:01:00"
METRICS = ("MASE", "WQL", "MAE", "coverage80")


@dataclass(frozen=True)
class Example:
    """One set of series to forecast.

    Attributes:
        name: name of its file and run folder.
        title: heading on the page.
        table: name of the table in vega_datasets.
        source: origin of the data.
        columns: timestamps first, then the variates; empty for all columns.
        unit: unit of the values.
        context: time steps of history in a window.
        horizon: time steps to forecast.
        shown: variates to draw.
        history: time steps of history to draw.
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
        """The table, with its timestamps and the variates to forecast.

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


# Sizes were chosen on validation windows. The hourly temperatures in vega_datasets are climate normals, averages over
# thirty years that hardly change from day to day, and not suited to test forecasts.
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
    """Results of one example.

    Attributes:
        example: the example.
        series: number of its variates.
        report: scores of the model and the baselines.
        figure: the forecast of the last test window.
        facts: facts about the data and the training, for the page.
    """

    example: Example
    series: int
    report: "Report"
    figure: "Figure"
    facts: dict[str, str]


def demo(output: Path = Path("report/demo"), seed: int = 2023, max_epochs: int | None = None) -> None:
    """Train iTransformer on US employment and Seattle weather, iLLaMA on digits, and write a report page.

    Training takes about a minute on two cores, and three minutes at most. Nothing is downloaded. The page compares the
    forecasts of held-out windows with naive ones, and shows how to do the same on your own table.

    Args:
        output: folder of the page (index.html), its numbers (report.json), a picture (forecast.png), the tables and
            the trained models.
        seed: random seed of weights, dropout and the order of windows; the same seed gives the same numbers.
        max_epochs: largest number of epochs, to try the command quickly.
    """
    check_sizes("leave it out for the full training", max_epochs=max_epochs)
    io.check_new([output], overwrite=True, sign="fit.yaml")  # an earlier demo is replaced
    with io.lock_folder(output):
        _demo(output, seed, max_epochs)


def _demo(output: Path, seed: int, max_epochs: int | None) -> None:
    """Train, score and write the page, in a folder that no other demo uses."""
    tables = [example.read() for example in EXAMPLES]
    with io.atomic_file(output / "fit.yaml") as file:
        shutil.copyfile(CONFIG, file)
    command_words = ["tsfm", "demo", "--output", output, "--seed", seed]
    if max_epochs is not None:
        command_words += ["--max_epochs", max_epochs]
    commands = [shlex.join(map(str, command_words))] + [
        fit_command(each, output, seed, max_epochs) for each in EXAMPLES
    ]
    outcomes = [run(*each, output) for each in zip(EXAMPLES, tables, commands[1:], strict=True)]
    report = sum((outcome.report for outcome in outcomes), evaluation.Report())
    images = demo_images.run(output, seed, max_epochs)
    if images is not None:
        commands.append(images[0])
    all_scores = report if images is None else report + demo_images.scores(images[1])
    all_scores.save(output / "report.json")
    reports.save_figure(outcomes[0].figure, output / "forecast.png")
    image_outcome = None if images is None else images[1]
    reports.save_page(build_page(outcomes, report, commands, output, image_outcome), output / "index.html")
    for outcome in outcomes:
        say("\n" + terminal_table(score_rows(outcome.report), outcome.example.title))
    if images is not None:
        say("\n" + terminal_table(demo_images.score_rows(images[1]), demo_images.TITLE))
    say(f"\npage: {output / 'index.html'}   numbers: {output / 'report.json'}")
    say("\nThe same on your own table:\n\n" + own_commands(output))


def run(example: Example, table: "pd.DataFrame", command: str, output: Path) -> Outcome:
    """Train, score and draw one example.

    Args:
        example: the example.
        table: its table.
        command: the command that trains.
        output: folder of the demo.
    """
    from tsfm.commands.train import train  # Lightning takes seconds

    path, folder = output / f"{example.name}.csv", output / example.name
    with io.atomic_file(path) as file:
        table.to_csv(file, index=False)
    variates = table.shape[1] - 1
    say(f"\n{example.title}: {variates} series, {len(table)} steps; {example.context} steps in, {example.horizon} out")
    shutil.rmtree(folder, ignore_errors=True)  # from an earlier demo
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
    """The command that trains on an example, as a line for a shell."""
    words = ["tsfm", "fit", "--config", output / "fit.yaml", "--data.source", output / f"{example.name}.csv"]
    words += ["--data.context", example.context, "--data.horizon", example.horizon]
    words += ["--seed_everything", seed, "--data.seed", seed, "--trainer.max_time", MAX_TIME]
    words += ["--trainer.default_root_dir", output / example.name, "--overwrite"]
    if max_epochs is not None:
        words += ["--trainer.max_epochs", max_epochs]
    return shlex.join(map(str, words))


def score(example: Example, model: "Forecaster", path: Path) -> "Report":
    """Score the model and the baselines on every window of the test rows, with all variates."""
    metrics = {name: evaluation.PROBABILISTIC[name] for name in METRICS}
    profile = evaluation.Profile("demo", metrics, "rolling", univariate=False)
    model.name = "iTransformer"
    predictors = (model, evaluation.SeasonalNaive(), evaluation.Naive())
    return sum(
        (evaluation.evaluate(each, path, profile, horizon=example.horizon) for each in predictors), evaluation.Report()
    )


def draw(example: Example, model: "Forecaster", path: Path, table: "pd.DataFrame") -> "Figure":
    """The forecast of the last test window and the true values."""
    known = io.read_series(table.iloc[: -example.horizon])
    frame = inference.forecast_frame(model, known, example.horizon, nn.DEFAULT_LEVELS)
    return reports.plot_forecast(known, frame, io.read_series(table), example.shown, example.unit, example.history)


def data_facts(example: Example, module: "ForecastDataModule") -> dict[str, str]:
    """Facts about the data of an example: source, sizes, and the rows for training, validation and test."""
    series, times = module.series, module.series.timestamps(0)
    facts = {"source": example.source, "series": str(len(series.variates))}
    facts["rows"] = f"{series.length(0):,} (frequency {series.freqs[0]})"
    facts["window"] = f"{example.context} steps in, {example.horizon} steps out"
    for name, part in (("training", "train"), ("validation", "val"), ("test", "test")):
        first, last = getattr(module.split, part)[0]
        facts[f"{name} rows"] = f"{last - first:,}: {times[first]:%Y-%m-%d} to {times[last - 1]:%Y-%m-%d}"
    return facts


def training_facts(folder: Path, model: "Forecaster") -> dict[str, str]:
    """Facts about the training, from its log, and why it ended: early stopping, the last epoch, or the time limit."""
    import pandas as pd  # slow to import

    losses = pd.read_csv(next(folder.glob("logs/*/metrics.csv")))["val_loss"].dropna().tolist()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    callbacks = config["trainer"]["callbacks"]
    patience = next(c["init_args"]["patience"] for c in callbacks if c["class_path"].endswith("EarlyStopping"))
    best = losses.index(min(losses))
    if len(losses) >= config["trainer"]["max_epochs"]:
        end = "all epochs"
    elif len(losses) - 1 - best >= patience:
        end = f"stopped after {patience} epochs without improvement"
    else:
        end = "stopped by the time limit: a faster machine gives other numbers"
    return {
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "epochs": f"{len(losses)}; {end}",
        "best epoch": f"{best + 1}, validation MSE {losses[best]:.4f} on standardised values",
        "seed": str(config["seed_everything"]),
    }
