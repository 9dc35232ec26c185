"""Model cards of image models, made from the recorded training and scores."""

import json
from pathlib import Path
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from tsfm.weights.folders import FILES, read_object
from tsfm.weights.tensors import layout
from tsfm_data.errors import InputError, reason_of
from tsfm_data.io import atomic_file, read_record, read_yaml

METRICS = {"top1": "top-1", "top5": "top-5", "log_loss": "log loss", "ECE": "calibration error (ECE)"}
SHARES = ("top1", "top5")


class Row(TypedDict):
    """A score of an image model: of all images, or of a class."""

    metric: str
    value: float | None
    dataset: str
    points: int
    item_id: NotRequired[str | None]


class Evaluation(TypedDict):
    """What ``tsfm image evaluate --json`` writes."""

    rows: list[Row]


class ImageScores(TypedDict):
    """The content of ``scores.json``."""

    data: str
    images: int
    classes: dict[str, float]
    scores: dict[Literal["top1", "top5", "log_loss", "ECE"], float]


class Source(TypedDict):
    """What an image model was trained on."""

    source: str
    images: int


class Preprocessing(TypedDict, total=False):
    """What an image model takes."""

    input_size: tuple[int, int, int]


class Config(TypedDict):
    """The part of an image model's ``config.json`` that its card shows."""

    architecture: str
    num_classes: int
    label_names: NotRequired[list[str] | None]
    model_args: NotRequired[dict[str, Any]]
    pretrained_cfg: NotRequired[Preprocessing]
    training_data: NotRequired[Source | None]
    recipe: NotRequired[dict[str, Any]]


def keep_image_scores(file: Path, folder: Path) -> None:
    """Write ``scores.json`` of an image model: the scores on all images, and top-1 of every class.

    Args:
        file: what ``tsfm image evaluate --json`` wrote.
        folder: the model folder.

    Raises:
        InputError: no such evaluation.
    """
    rows = read_record(file, Evaluation, "the scores of an image model", finite=False)["rows"]
    if not any(row["metric"] == "top1" and row.get("item_id") is None for row in rows):
        raise InputError(f"expected the scores of an image model in {file}: write them with tsfm image evaluate --json")
    whole = {row["metric"]: row for row in rows if row["metric"] in METRICS and row.get("item_id") is None}
    classes = {row["item_id"]: row["value"] for row in rows if row["metric"] == "top1" and row.get("item_id")}
    first = whole["top1"]
    kept = {"data": first["dataset"], "images": first["points"], "classes": classes}
    kept["scores"] = {metric: row["value"] for metric, row in whole.items()}
    with atomic_file(folder / "scores.json") as temporary:
        temporary.write_text(json.dumps(kept, indent=1) + "\n")


def keep_recipe(run: Path, folder: Path) -> None:
    """Write the training recipe of an image model into its ``config.json``.

    Args:
        run: folder of the run, with the ``config.yaml`` that ``tsfm fit`` wrote.
        folder: the model folder.

    Raises:
        InputError: no such run, or no image model.
    """
    file = run / "config.yaml"
    config = read_object(folder / FILES[0])
    if "architecture" not in config:
        raise InputError(f"expected an image model in {folder}, found another: a forecaster keeps its recipe itself")
    try:
        run_config = read_yaml(file, "the settings of a run")
        trainer, task, data = run_config["trainer"], run_config["model"]["init_args"], run_config["data"]["init_args"]
        recipe = {
            "seed": run_config["seed_everything"],
            "epochs": trainer["max_epochs"],
            "precision": trainer["precision"],
        }
        recipe |= {"gradient_clip_val": trainer["gradient_clip_val"], "batch_size": data["batch_size"]}
        recipe |= {key: data[key] for key in ("val_fraction", "fraction")}
        recipe |= {"optim": task["optim"], "mix": task["mix"], "augment": data["augment"]}
    except (OSError, KeyError, TypeError, InputError) as error:
        reason = reason_of(error, 100)
        raise InputError(f"expected config.yaml of a run of tsfm fit at {file}, found another ({reason})") from error
    with atomic_file(folder / FILES[0]) as temporary:
        temporary.write_text(json.dumps(config | {"recipe": recipe}, indent=2) + "\n")


def image_card(folder: Path, licence: str) -> str:
    """The text of ``README.md`` of an image model, from its config, its weights and ``scores.json``."""
    config: dict[str, Any] = dict(read_record(folder / FILES[0], Config, "the config.json of an image model"))
    weights = layout(folder / FILES[1])
    name, images = folder.resolve().name, config.get("training_data") or {}
    own: dict[str, Any] = config.get("pretrained_cfg") or {}
    channels, height, width = own.get("input_size", (3, 224, 224))
    labels = config.get("label_names") or []
    head = ["---", f"license: {licence}", "library_name: timm", "pipeline_tag: image-classification"]
    head += ["tags:", "- image-classification", "- timm", f"- {config['architecture']}"]
    head += ["datasets:", f"- {json.dumps(images['source'])}"] if images else []
    head += ["metrics:", "- accuracy"] if (folder / "scores.json").is_file() else []
    colours = "colour" if channels == 3 else "grey"
    shown = ", ".join(labels[:20]) + (", ..." if len(labels) > 20 else "")
    known = images.get("source", "its training set")
    parts = [
        "\n".join([*head, "---"]),
        f"# {name}",
        f"A compact {config['architecture']} with {weights.values:,} parameters and buffers that classifies {colours} "
        f"images into {config['num_classes']} classes" + (f": {shown}." if shown else "."),
        f"Images are resized to {height} x {width} pixels.",
        "## Use",
        f"    tsfm image predict IMAGES --model {name}\n"
        f"    tsfm image finetune IMAGES --model {name} --output my-model",
        "Intended for a first try of image models without a download, and for fine-tuning on small images. After "
        '`import tsfm_vision`, timm also reads the folder: `timm.create_model("local-dir:FOLDER", pretrained=True)`.',
        training(config, images),
        results(name, folder),
        f"## Limits\n\n- It assigns every image to one of its {config['num_classes']} classes, even if none of them "
        f"fits.\n- Its accuracy on images unlike those of {known} is not known.",
        f"## Licence\n\n{licence}. Trained with tsfm-suite.",
    ]
    return "\n\n".join(parts) + "\n"


def training(config: dict[str, Any], images: dict[str, Any]) -> str:
    """Training data, sizes and recipe."""
    lines = ["## Training", ""]
    if images:
        lines += [f"Trained from random weights on {images['images']:,} training images of {images['source']}.", ""]
    sizes = {key: value for key, value in (config.get("model_args") or {}).items() if key != "num_classes"}
    lines += [f"Sizes: {_plain(sizes)}."]
    recipe = config.get("recipe")
    if recipe is None:
        return "\n".join([*lines, "", "Its training is not recorded."])
    groups = {key: value for key, value in recipe.items() if isinstance(value, dict)}
    single = {key: value for key, value in recipe.items() if key not in groups}
    lines += ["", f"Recipe: {_plain(single)}.", ""]
    return "\n".join([*lines, *(f"- {key}: {_plain(value)}" for key, value in groups.items())])


def _plain(values: dict[str, Any]) -> str:
    """Keys and values in one line."""
    return ", ".join(f"{key} {json.dumps(value)}" for key, value in values.items())


def results(name: str, folder: Path) -> str:
    """The scores, with the command that computes them."""
    if not (folder / "scores.json").is_file():
        return "## Scores\n\nThere are no scores yet."
    scores = read_record(folder / "scores.json", ImageScores, "scores of an image model")
    lines = ["## Scores", "", f"On {scores['images']:,} test images of {scores['data']}, used for nothing else.", ""]
    lines += ["| metric | value |", "|---|---|"]
    for metric, value in scores["scores"].items():
        lines.append(
            f"| {METRICS[metric]} | {value:.2%} |" if metric in SHARES else f"| {METRICS[metric]} | {value:.3f} |"
        )
    if scores["classes"]:
        each = sorted(scores["classes"].items(), key=lambda pair: -pair[1])
        lines += ["", "Top-1 of each class: " + ", ".join(f"{label} {value:.1%}" for label, value in each) + "."]
    return "\n".join([*lines, "", f"    tsfm image evaluate {scores['data']} --model {name} --json scores.json"])
