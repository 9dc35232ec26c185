"""Model cards in the Hugging Face format: of released models from what is recorded of them, of converted ones from
where they come from.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsfm.weights.folders import FILES, Origin, read_object
from tsfm.weights.image_cards import image_card, keep_image_scores
from tsfm.weights.pretrained import finetuning_line
from tsfm.weights.tensors import layout
from tsfm_data.errors import InputError
from tsfm_data.io import atomic_file

if TYPE_CHECKING:
    from tsfm.models import Forecaster

LICENCE = "apache-2.0"
SHOWN = {"MASE": "MASE", "WQL": "WQL"}  # metric of scores.json -> its name on the hub
CALIBRATION = {"coverage80": "share inside the 80 % interval", "coverage_error": "mean error of the levels' coverage"}


def card(folder: Path) -> str:
    """The text of ``README.md`` of a model of ours, from its config, its weights and ``scores.json``.

    Nothing is scored again: ``scores.json`` is what ``tsfm evaluate --suite bench --json`` wrote, or for an image model
    ``tsfm image evaluate --json``.

    Raises:
        InputError: not such a folder.
    """
    for name in FILES[:2]:
        if not (folder / name).is_file():
            raise InputError(f"expected {name} in the model folder {folder}, found none: check the path")
    config = read_object(folder / FILES[0])
    if "architecture" in config:
        return image_card(folder, LICENCE)
    if "model_type" not in config:
        raise InputError(f"expected a model of ours in {folder}, found another config.json: no card is made")
    name, weights = folder.resolve().name, layout(folder / FILES[1])
    facts = config.get("pretraining") or {}
    scores = read_object(folder / "scores.json") if (folder / "scores.json").is_file() else {}
    parts = [
        front_matter(config, facts, bool(scores)),
        f"# {name}",
        f"A {config['model_type']} of {weights.values:,} parameters that forecasts series it was not trained on: "
        f"{config['context']:,} steps of history at most, trained on horizons of up to {config['horizon']:,} steps, "
        f"longer ones by passes. Every quantile level can be asked for. Weights are stored as "
        f"{', '.join(sorted(set(weights.dtypes.values())))}.",
        "## Use",
        f"    tsfm forecast my.csv --horizon 24 --model {name}",
        "Intended for short- and medium-term forecasts of regular series, with intervals, without training. Compare it "
        "with seasonal naive on your own series before you rely on it: `tsfm evaluate` does.",
        training(config, facts),
        finetuning(config),
        results(name, scores),
        limits(config, facts),
        f"## Licence\n\n{LICENCE}. Trained with tsfm-suite {config.get('tsfm_version', '')}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def keep_scores(file: Path, folder: Path) -> None:
    """Write ``scores.json`` of a model folder: of an evaluation, the summary and the model's own errors on every set.

    Args:
        file: what ``tsfm evaluate --suite bench --json`` wrote, or for an image model ``tsfm image evaluate --json``.
        folder: the model folder.

    Raises:
        InputError: no such evaluation.
    """
    if "architecture" in read_object(folder / FILES[0]):
        return keep_image_scores(file, folder)
    found = read_object(file)
    if not {"model", "suite", "rows", "summary"} <= set(found):
        raise InputError(
            f"expected the scores of a suite in {file}: write them with tsfm evaluate --suite bench --json"
        )
    keys = ("dataset", "profile", "horizon", "windows", "metric", "value")
    rows = [
        {key: row[key] for key in keys}
        for row in found["rows"]
        if row["model"] == found["model"] and row["metric"] in SHOWN
    ]
    summary = {
        profile: {
            model: {key: value for key, value in said.items() if key in SHOWN or key in CALIBRATION}
            for model, said in models.items()
        }
        for profile, models in found["summary"].items()
    }
    kept = {"model": found["model"], "suite": found["suite"], "summary": summary, "rows": rows}
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
    """What it was trained on, for how long, with which seeds, and the command."""
    sizes = ", ".join(f"{key} {value}" for key, value in config["config"].items() if not isinstance(value, list))
    lines = ["## Training", "", f"Sizes: {sizes}."]
    if not facts:
        return "\n".join([*lines, "", "How it was trained is not recorded."])
    seen = f"{facts['steps']:,} steps over {facts['batches']:,} batches"
    if facts.get("observations") is not None:
        seen += f", {facts['observations']:,} observed values"
    lines += ["", f"{seen}. Seed {facts['seed']} of the batches, {facts.get('global_seed')} of the weights.", ""]
    if facts.get("corpus") is None:
        lines.append("Training data: generated series alone.")
    else:
        lines.append(f"Training data: corpus {facts['corpus']}, manifest.json of SHA-256 {facts['manifest_sha256']}.")
        lines += ["", f"- trained on: {', '.join(facts['sources']) or 'none'}"]
        lines.append(f"- never trained on: {', '.join(facts['held_out']) or 'none'}")
    return "\n".join([*lines, "", f"    {facts['command']}"] if facts.get("command") else lines)


def finetuning(config: dict[str, Any]) -> str:
    """From which model, how and on what it was fine-tuned; nothing if it was not."""
    facts, data = config.get("finetuning"), config.get("training_data") or {}
    return f"## Fine-tuning\n\n{finetuning_line(facts)} Read from {data.get('source')}." if facts else ""


def results(name: str, scores: dict[str, Any]) -> str:
    """The tables of ``scores.json``, with the command that computes them."""
    if not scores:
        return "## Scores\n\nIt was not scored."
    lines = [
        "## Scores",
        "",
        "Geometric mean over sets of the error relative to seasonal naive; below 1 is better.",
        "",
    ]
    lines += ["| protocol | model | sets | " + " | ".join(SHOWN) + " |", "|" + "---|" * (3 + len(SHOWN))]
    for profile, models in scores["summary"].items():
        for model, found in models.items():
            cells = [_number(found.get(metric, {}).get("relative")) for metric in SHOWN]
            sets = found.get("MASE", {}).get("datasets", "")
            label = f"**{name}**" if model == scores["model"] else model
            lines.append(f"| {profile} | {label} | {sets} | " + " | ".join(cells) + " |")
    for profile, models in scores["summary"].items():
        own = models.get(scores["model"], {})
        said = [f"{text} {_number(own[key])}" for key, text in CALIBRATION.items() if own.get(key) is not None]
        if said:
            lines += ["", f"Calibration, {profile}: {'; '.join(said)}."]
    profiles = " ".join(scores["summary"])
    command = f"tsfm evaluate --model {name} --suite {scores['suite']} --profiles {profiles} --json scores.json"
    return "\n".join([*lines, "", f"    {command}"])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def limits(config: dict[str, Any], facts: dict[str, Any]) -> str:
    """What it cannot do, and what it was not tried on."""
    lines = ["## Limits", "", f"- Of a longer history, only the last {config['context']:,} steps are seen."]
    if facts.get("corpus") is None:
        lines.append("- It has never seen a real series in training.")
    else:
        lines.append("- Accuracy is known for series like those of the suite; on other kinds, score it first.")
    lines.append("- Each variate is forecast by itself unless its kind says otherwise; events that are in no history")
    lines[-1] += " are not foreseen."
    return "\n".join(lines)


def foreign_card(name: str, task: str, origin: Origin, model: "Forecaster | None" = None) -> str:
    """The card of a converted checkpoint: whose it is, under which licence, and what it was made from."""
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
    lines.append("Published weights of others, converted; the numbers are theirs.")
    if origin.source:
        lines.append(f"Source: {origin.source}" + (f", commit {origin.revision}." if origin.revision else "."))
    if origin.licence == "unknown":
        lines.append("Its licence is not known: ask at the source before use.")
    elif "-nc" in origin.licence:
        lines.append(f"Licence {origin.licence}: no commercial use.")
    lines += ["", *(f"- {file}: SHA-256 {sha256}" for file, sha256 in (origin.sha256 or {}).items())]
    if model is not None:
        lines += ["", f"{model.model_type}, context {model.context:,}, horizon {model.horizon:,}: {model.config}"]
        lines += ["", "    tsfm forecast INPUT --horizon H --model THIS_FOLDER"]
    return "\n".join(lines) + "\n"
