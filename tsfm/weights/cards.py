"""Model cards in the Hugging Face format, made from what is recorded of a released or converted model."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired

from typing_extensions import TypedDict

from tsfm.weights.folders import FILES, Origin, read_object
from tsfm.weights.image_cards import image_card, keep_image_scores
from tsfm.weights.pretrained import check_folder, finetuning_line
from tsfm.weights.tensors import layout
from tsfm_data.errors import InputError
from tsfm_data.io import atomic_file, read_record

if TYPE_CHECKING:
    from tsfm.models import Forecaster

LICENCE = "apache-2.0"
SHOWN = {"MASE": "MASE", "WQL": "WQL"}  # metric of scores.json -> its name on the hub
CALIBRATION = {
    "coverage80": "share of true values inside the 80 % interval",
    "coverage_error": "mean distance of a quantile's coverage from its level",
}


class Row(TypedDict):
    """An error of a model on a set."""

    model: NotRequired[str]
    dataset: str
    profile: str
    horizon: int
    windows: NotRequired[int]  # published errors have none
    metric: str
    value: float | None


class Relative(TypedDict):
    """An error relative to that of seasonal naive, over some sets."""

    relative: float | None
    datasets: NotRequired[int]


class Errors(TypedDict, total=False):
    """The errors of a model in a protocol."""

    MASE: Relative
    WQL: Relative
    coverage80: float | None
    coverage_error: float | None


class Scores(TypedDict):
    """What ``tsfm evaluate --suite --json`` writes, and what ``scores.json`` keeps of it."""

    model: str
    suite: str
    summary: dict[str, dict[str, Errors]]
    rows: list[Row]


def card(folder: Path) -> str:
    """The text of ``README.md`` of a model of this suite, from its config, its weights and ``scores.json``.

    The scores are read from ``scores.json``, which ``tsfm weights card --scores`` keeps.

    Raises:
        InputError: no such model folder.
    """
    for name in FILES[:2]:
        if not (folder / name).is_file():
            raise InputError(f"expected {name} in the model folder {folder}, found none: check the path")
    config = read_object(folder / FILES[0])
    if "architecture" in config:
        return image_card(folder, LICENCE)
    if "model_type" not in config:
        raise InputError(f"expected a model folder of tsfm in {folder}, found another config.json: name one of tsfm")
    check_folder(folder)
    name, weights = folder.resolve().name, layout(folder / FILES[1])
    facts = config.get("pretraining") or {}
    file = folder / "scores.json"
    scores = dict(read_record(file, Scores, "scores of a suite")) if file.is_file() else {}
    parts = [
        front_matter(config, facts, bool(scores)),
        f"# {name}",
        f"A {config['model_type']} with {weights.values:,} parameters. It forecasts series that it was not trained on.",
        f"- History: the last {config['context']:,} steps are used.\n"
        f"- Horizon: trained for up to {config['horizon']:,} steps; longer horizons are forecast in several passes.\n"
        "- Output: any quantile levels.\n"
        f"- Weights: stored as {', '.join(sorted(set(weights.dtypes.values())))}.",
        "## Use",
        f"    tsfm forecast my.csv --horizon 24 --model {name}",
        "Intended for short- and medium-term forecasts of regular series, with intervals and without training. Before "
        "you rely on it, compare it with seasonal naive on your own series by `tsfm evaluate`.",
        training(config, facts),
        finetuning(config),
        results(name, scores),
        limits(config, facts),
        f"## Licence\n\n{LICENCE}. Trained with tsfm-suite {config.get('tsfm_version', '')}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def keep_scores(file: Path, folder: Path) -> None:
    """Write ``scores.json`` of a model folder: the summary of an evaluation and the model's errors on every set.

    Args:
        file: what ``tsfm evaluate --suite bench --json`` wrote, or for an image model ``tsfm image evaluate --json``.
        folder: the model folder.

    Raises:
        InputError: no such evaluation.
    """
    if "architecture" in read_object(folder / FILES[0]):
        return keep_image_scores(file, folder)
    evaluation = read_record(
        file, Scores, "the scores of a suite", finite=False, hint="write them with tsfm evaluate --suite bench --json"
    )
    keys = ("dataset", "profile", "horizon", "windows", "metric", "value")
    rows = [
        {key: value for key, value in row.items() if key in keys}
        for row in evaluation["rows"]
        if row.get("model") == evaluation["model"] and row["metric"] in SHOWN
    ]
    summary = {
        profile: {
            model: {key: value for key, value in scores.items() if key in SHOWN or key in CALIBRATION}
            for model, scores in models.items()
        }
        for profile, models in evaluation["summary"].items()
    }
    kept = {"model": evaluation["model"], "suite": evaluation["suite"], "summary": summary, "rows": rows}
    with atomic_file(folder / "scores.json") as temporary:
        temporary.write_text(json.dumps(kept, indent=1) + "\n")


def front_matter(config: dict[str, Any], facts: dict[str, Any], scored: bool) -> str:
    """The YAML head that the hub reads."""
    lines = ["---", f"license: {LICENCE}", "library_name: tsfm-suite", "pipeline_tag: time-series-forecasting"]
    lines += ["tags:", "- time-series", "- forecasting", "- foundation-model", f"- {config['model_type']}"]
    if facts.get("sources"):
        lines += ["datasets:", *(f"- {json.dumps(source)}" for source in facts["sources"])]
    if scored:
        lines += ["metrics:", *(f"- {metric.lower()}" for metric in SHOWN)]
    return "\n".join([*lines, "---"])


def training(config: dict[str, Any], facts: dict[str, Any]) -> str:
    """Sizes, training data, length, seeds and the command."""
    sizes = ", ".join(f"{key} {value}" for key, value in config["config"].items() if not isinstance(value, list))
    lines = ["## Training", "", f"Sizes: {sizes}."]
    if not facts:
        return "\n".join([*lines, "", "Its training is not recorded."])
    seen = f"{facts['steps']:,} steps on {facts['batches']:,} batches"
    if facts.get("observations") is not None:
        seen += f" with {facts['observations']:,} observed values"
    lines += ["", f"{seen}. Seeds: {facts['seed']} for batches, {facts.get('global_seed')} for weights.", ""]
    if facts.get("corpus") is None:
        lines.append("Training data: synthetic series only.")
    else:
        lines.append(
            f"Training data: corpus {facts['corpus']}; its manifest.json has SHA-256 {facts['manifest_sha256']}."
        )
        lines += ["", f"- trained on: {', '.join(facts['sources']) or 'none'}"]
        lines.append(f"- held out: {', '.join(facts['held_out']) or 'none'}")
    return "\n".join([*lines, "", f"    {facts['command']}"] if facts.get("command") else lines)


def finetuning(config: dict[str, Any]) -> str:
    """From which model, how and on what it was fine-tuned; nothing if it was not."""
    facts, data = config.get("finetuning"), config.get("training_data") or {}
    return f"## Fine-tuning\n\n{finetuning_line(facts)} Read from {data.get('source')}." if facts else ""


def results(name: str, scores: dict[str, Any]) -> str:
    """The tables of ``scores.json``, with the command that computes them."""
    if not scores:
        return "## Scores\n\nThere are no scores yet."
    lines = [
        "## Scores",
        "",
        "Error divided by that of seasonal naive, as geometric mean over sets: below 1 is better.",
        "",
    ]
    lines += ["| protocol | model | sets | " + " | ".join(SHOWN) + " |", "|" + "---|" * (3 + len(SHOWN))]
    for profile, models in scores["summary"].items():
        for model, errors in models.items():
            values = [_number(errors.get(metric, {}).get("relative")) for metric in SHOWN]
            sets = errors.get("MASE", {}).get("datasets", "")
            label = f"**{name}**" if model == scores["model"] else model
            lines.append(f"| {profile} | {label} | {sets} | " + " | ".join(values) + " |")
    for profile, models in scores["summary"].items():
        own = models.get(scores["model"], {})
        parts = [f"{text} {_number(own[key])}" for key, text in CALIBRATION.items() if own.get(key) is not None]
        if parts:
            lines += ["", f"Calibration, {profile}: {'; '.join(parts)}."]
    profiles = " ".join(scores["summary"])
    command = f"tsfm evaluate --model {name} --suite {scores['suite']} --profiles {profiles} --json scores.json"
    return "\n".join([*lines, "", f"    {command}"])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def limits(config: dict[str, Any], facts: dict[str, Any]) -> str:
    """What the model cannot do, and what is not known of it."""
    lines = ["## Limits", "", f"- Only the last {config['context']:,} steps of a history are used."]
    if facts.get("corpus") is None:
        lines.append("- It was trained without any real series.")
    else:
        lines.append(
            "- Its accuracy is known for series like those of the benchmark sets; evaluate it first on others."
        )
    if config["model_type"].startswith("zeroshot") and not config["config"].get("any_variate"):
        lines.append(
            "- Each variate is forecast independently of the others. "
            "The effect of covariates is learnt from each history."
        )
    lines.append("- It cannot foresee events that the history does not show.")
    return "\n".join(lines)


def foreign_card(name: str, task: str, origin: Origin, model: "Forecaster | None" = None) -> str:
    """The card of a converted checkpoint: its source, its licence and the files it was made from."""
    licence = origin.licence if origin.licence != "unknown" else "other"
    tag = "time-series-forecasting" if task == "forecast" else "image-classification"
    lines = [
        "---",
        f"license: {licence}",
        "library_name: tsfm-suite",
        f"pipeline_tag: {tag}",
        "---",
        "",
        f"# {name}",
        "",
    ]
    lines.append("Published weights of others in the format of tsfm-suite; their values are unchanged.")
    if origin.source:
        lines.append(f"Source: {origin.source}" + (f", commit {origin.revision}." if origin.revision else "."))
    if origin.licence == "unknown":
        lines.append("Its licence is not known: ask its authors before use.")
    elif "-nc" in origin.licence:
        lines.append(f"Licence {origin.licence}: no commercial use.")
    lines += ["", *(f"- {file}: SHA-256 {sha256}" for file, sha256 in (origin.sha256 or {}).items())]
    if model is not None:
        lines += ["", f"{model.model_type}, context {model.context:,}, horizon {model.horizon:,}: {model.config}"]
        lines += ["", "    tsfm forecast INPUT --horizon H --model THIS_FOLDER"]
    return "\n".join(lines) + "\n"
