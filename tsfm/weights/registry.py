"""The models that have a name: those that ship with the package, and published ones with where they come from."""

import difflib
import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import tsfm
from tsfm.weights.tensors import layout
from tsfm_data.errors import InputError, unknown_name
from tsfm_data.io import cache_folder

REGISTRY = Path(__file__).with_name("registry.json")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(@[A-Za-z0-9][A-Za-z0-9._-]*)?")
OURS = "apache-2.0"  # the licence of what ships with the package
DEFAULT = "tsfm-decoder-small"


@dataclass(frozen=True)
class Entry:
    """A model by its name.

    Attributes:
        name: what ``--model`` and ``tsfm weights`` take.
        task: "forecast" or "image".
        family: the kind of model; for forecasts the model type that it becomes.
        parameters: their number.
        licence: SPDX name in small letters, or "unknown".
        repo: repository of the Hugging Face hub.
        revision: of the repository; a branch, tag or commit.
        files: what is fetched from the repository.
        url: where the one file is that is in no repository.
        sha256: of that file, where it is published.
        several: whether a forecaster looks at all variates of a table at once.
        covariates: whether it looks at covariates.
        architecture: name of the image model.
        sizes: what the published config says of the model's size.
        scores: published results: suite, metric, value.
        note: what else to know.
        folder: where it lies, for a model that ships with the package.
    """

    name: str
    task: Literal["forecast", "image"]
    family: str
    parameters: int | None
    licence: str
    repo: str | None = None
    revision: str = "main"
    files: tuple[str, ...] = ()
    url: str | None = None
    sha256: str | None = None
    several: bool = False
    covariates: bool = False
    architecture: str | None = None
    sizes: dict[str, Any] | None = None
    scores: tuple[dict[str, Any], ...] = ()
    note: str = ""
    folder: Path | None = None

    @property
    def restricted(self) -> bool:
        """Whether the licence forbids commercial use or is not known, so that it must be accepted."""
        return "-nc" in self.licence or self.licence == "unknown"

    @property
    def source(self) -> str | None:
        """Where it comes from, in one word."""
        if self.folder is not None:
            return "shipped"
        return f"hub:{self.repo}@{self.revision}" if self.repo else self.url


@cache
def published() -> dict[str, Entry]:
    """The published models of others, by name."""
    rows: list[dict[str, Any]] = json.loads(REGISTRY.read_text())
    for row in rows:
        row |= {key: tuple(row[key]) for key in ("files", "scores") if key in row}
    return {row["name"]: Entry(**row) for row in rows}


def released_folder() -> Path:
    """Where the models that ship with the package lie."""
    return Path(tsfm.__file__).parent / "released"


def default() -> str:
    """The model that forecasts where none is named.

    Raises:
        InputError: it does not ship with this package.
    """
    if not (released_folder() / DEFAULT / "config.json").is_file():
        raise InputError(f"expected the weights of {DEFAULT} in the package, found none: give --model a name or folder")
    return DEFAULT


def default_image() -> str:
    """The image model that classifies where none is named: the first that ships.

    Raises:
        InputError: none ships with this package.
    """
    found = next((name for name, entry in released().items() if entry.task == "image"), None)
    if found is None:
        raise InputError("expected an image model in the package, found none: give --model a name or folder")
    return found


def released() -> dict[str, Entry]:
    """The models that ship with the package, by name."""
    found = {}
    for config in sorted(released_folder().glob("*/config.json")):
        folder, facts = config.parent, json.loads(config.read_text())
        image = "architecture" in facts
        together = not image and bool(facts["config"].get("any_variate"))
        found[folder.name] = Entry(
            folder.name,
            "image" if image else "forecast",
            facts["architecture"] if image else facts["model_type"],
            layout(folder / "model.safetensors").values,
            OURS,
            several=together,
            covariates=together,
            scores=tuple(_scores(folder)),
            folder=folder,
        )
    return found


def _scores(folder: Path) -> list[dict[str, Any]]:
    """The headline of ``scores.json``, as the published models have theirs."""
    file = folder / "scores.json"
    if not file.is_file():
        return []
    whole = json.loads(file.read_text())
    if "data" in whole:
        return [{"suite": whole["data"], "metric": "top-1", "value": whole["scores"]["top1"]}]
    found = []
    for profile, models in whole.get("summary", {}).items():
        for metric in ("MASE", "WQL"):
            value = models.get(whole.get("model"), {}).get(metric, {}).get("relative")
            if value is not None:
                name = f"{metric} relative to seasonal naive"
                found.append({"suite": f"{whole.get('suite')}, {profile}", "metric": name, "value": value})
    return found


def entries() -> dict[str, Entry]:
    """Every model by name, ours first."""
    return released() | published()


def get(name: str) -> Entry:
    """A model by its name.

    Raises:
        InputError: none has it; near ones are listed.
    """
    known = entries()
    if name not in known:
        if found := near(name):
            raise unknown_name("weights", name, found)
        raise InputError(f"unknown weights {name!r}: tsfm weights list shows all")
    return known[name]


def near(name: str) -> list[str]:
    """Names that are like this one."""
    return difflib.get_close_matches(name, entries(), n=3, cutoff=0.5)


def pulled_folder(name: str, revision: str | None = None) -> Path:
    """Where the model folder of a pulled model lies; another revision than the registry's has a folder of its own.

    Raises:
        InputError: a name that is none, or that would lead elsewhere.
    """
    full = name if revision is None else f"{name}@{revision.replace('/', '-')}"
    if not NAME.fullmatch(full):
        raise InputError(
            f"expected the name of a model, letters, digits and ._-, found {full!r}: see tsfm weights list"
        )
    return cache_folder() / "weights" / full


def local_folder(name: str) -> Path | None:
    """The folder of a model that ships with the package or was pulled, NAME or NAME@REVISION; None where neither."""
    if not NAME.fullmatch(name):
        return None
    places = (released_folder() / name, pulled_folder(name))
    return next((place for place in places if (place / "config.json").is_file()), None)


def image_folder(model: str | None) -> str:
    """The folder of an image model that ships with the package or was pulled; anything else as it is.

    Args:
        model: a name or a folder; None takes the image model that ships.

    Raises:
        InputError: none ships.
    """
    name = default_image() if model is None else model
    return str(local_folder(name) or name)


def is_image_model(model: str) -> bool:
    """Whether a model folder, or the run that holds it, is of an image model: its config names a timm architecture."""
    folder = Path(image_folder(model))
    for file in (folder / "config.json", folder / "model" / "config.json"):
        try:
            return "architecture" in json.loads(file.read_text())
        except (OSError, ValueError, TypeError):
            continue
    return False


def check_licence(entry: Entry, accepted: bool) -> None:
    """Refuse a model with a restricted licence that was not accepted.

    Raises:
        InputError: as said.
    """
    if entry.restricted and not accepted:
        what = "not known" if entry.licence == "unknown" else f"{entry.licence}, which forbids commercial use"
        raise InputError(
            f"{entry.name}: its licence is {what}; read it at its source ({entry.source or 'none known'}) and give "
            "--accept-licence"
        )
