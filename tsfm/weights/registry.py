"""The named models: those that ship with the package, and published models with their sources."""

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
from tsfm_data.io import cache_folder, read_record

REGISTRY = Path(__file__).with_name("registry.json")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(@[A-Za-z0-9][A-Za-z0-9._-]*)?")
OUR_LICENCE = "apache-2.0"
DEFAULT = "tsfm-long-small"


@dataclass(frozen=True)
class Entry:
    """A named model.

    Attributes:
        name: name for ``--model`` and ``tsfm weights``.
        task: "forecast" or "image".
        family: the kind of model; for forecasts the model type after conversion.
        parameters: number of parameters.
        licence: SPDX name in lower case, or "unknown".
        repo: repository on the Hugging Face hub.
        revision: branch, tag or commit of the repository.
        files: files to download from the repository.
        url: URL of the file, if there is no repository.
        sha256: SHA-256 of that file, if published.
        several: whether a forecaster looks at all variates of a table at once.
        covariates: whether it uses covariates.
        architecture: name of the image model in timm.
        sizes: sizes in the published config.
        scores: published results: suite, metric, value.
        note: remark for the user.
        folder: the model folder, if the model ships with the package.
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
        """Whether the licence forbids commercial use or is unknown, so that the user must accept it."""
        return "-nc" in self.licence or self.licence == "unknown"

    @property
    def source(self) -> str | None:
        """Where the model comes from, as text without spaces."""
        if self.folder is not None:
            return "shipped"
        return f"hub:{self.repo}@{self.revision}" if self.repo else self.url


@cache
def published() -> dict[str, Entry]:
    """Published models of other authors, by name."""
    rows: list[dict[str, Any]] = json.loads(REGISTRY.read_text())
    for row in rows:
        row |= {key: tuple(row[key]) for key in ("files", "scores") if key in row}
    return {row["name"]: Entry(**row) for row in rows}


def released_folder() -> Path:
    """The folder of the models that ship with the package."""
    return Path(tsfm.__file__).parent / "released"


def default() -> str:
    """The model that forecasts if none is named.

    Raises:
        InputError: its weights are not in this package.
    """
    if not (released_folder() / DEFAULT / "config.json").is_file():
        raise InputError(f"expected the weights of {DEFAULT} in the package, found none: give --model a name or folder")
    return DEFAULT


def default_image() -> str:
    """The image model that is used if none is named: the first that ships.

    Raises:
        InputError: there is none in this package.
    """
    name = next((key for key, entry in released().items() if entry.task == "image"), None)
    if name is None:
        raise InputError("expected an image model in the package, found none: give --model a name or folder")
    return name


def released() -> dict[str, Entry]:
    """The models that ship with the package, by name."""
    models = {}
    for config in sorted(released_folder().glob("*/config.json")):
        folder, facts = config.parent, json.loads(config.read_text())
        image = "architecture" in facts
        together = not image and bool(facts["config"].get("any_variate"))
        models[folder.name] = Entry(
            folder.name,
            "image" if image else "forecast",
            facts["architecture"] if image else facts["model_type"],
            layout(folder / "model.safetensors").values,
            OUR_LICENCE,
            several=together,
            covariates=not image,
            scores=tuple(_scores(folder)),
            folder=folder,
        )
    return models


def _scores(folder: Path) -> list[dict[str, Any]]:
    """The main scores in ``scores.json``, in the form of ``Entry.scores``."""
    file = folder / "scores.json"
    if not file.is_file():
        return []
    content = json.loads(file.read_text())
    if "data" in content:
        return [{"suite": content["data"], "metric": "top-1", "value": content["scores"]["top1"]}]
    scores = []
    for profile, models in content.get("summary", {}).items():
        for metric in ("MASE", "WQL"):
            value = models.get(content.get("model"), {}).get(metric, {}).get("relative")
            if value is not None:
                name = f"{metric} relative to seasonal naive"
                scores.append({"suite": f"{content.get('suite')}, {profile}", "metric": name, "value": value})
    return scores


def entries() -> dict[str, Entry]:
    """All models by name, ours first."""
    return released() | published()


def own_name(name: str) -> str:
    """The name of the weights for an image model by timm's name of it, unless weights have that name themselves."""
    if name in entries():
        return name
    return next((entry.name for entry in published().values() if entry.architecture == name), name)


def get(name: str) -> Entry:
    """A model by its name, or by timm's name of its architecture.

    Raises:
        InputError: an unknown name; similar names are listed.
    """
    name, known = own_name(name), entries()
    if name not in known:
        if similar := near(name):
            raise unknown_name("weights", name, similar)
        raise InputError(f"unknown weights {name!r}: tsfm weights list shows all")
    return known[name]


def near(name: str) -> list[str]:
    """Known names that are similar."""
    return difflib.get_close_matches(name, entries(), n=3, cutoff=0.5)


def pulled_folder(name: str, revision: str | None = None) -> Path:
    """The model folder of a downloaded model; another revision than the registry's has its own folder.

    Raises:
        InputError: the name contains other characters than letters, digits and ._-.
    """
    full = own_name(name) if revision is None else f"{own_name(name)}@{revision.replace('/', '-')}"
    if not NAME.fullmatch(full):
        raise InputError(
            f"expected the name of a model, letters, digits and ._-, found {full!r}: see tsfm weights list"
        )
    return cache_folder() / "weights" / full


def local_folder(name: str) -> Path | None:
    """The folder of a model (NAME or NAME@REVISION) that ships with the package or was downloaded, or None."""
    if not NAME.fullmatch(name):
        return None
    folders = (released_folder() / name, pulled_folder(name))
    return next((folder for folder in folders if (folder / "config.json").is_file()), None)


def image_folder(model: str | None) -> str:
    """The folder of an image model; a name is resolved to the model that ships or was downloaded.

    Args:
        model: a name or a folder; None is the image model that ships.

    Raises:
        InputError: none ships.
    """
    name = default_image() if model is None else model
    return str(local_folder(name) or name)


def is_image_model(model: str) -> bool:
    """Whether a model, its folder or its run folder is an image model: its config names a timm architecture."""
    folder = Path(image_folder(model))
    for file in (folder / "config.json", folder / "model" / "config.json"):
        try:
            return "architecture" in read_record(file, dict, "a config", finite=False)
        except (OSError, ValueError):  # no such file, or another one
            continue
    return False


def check_licence(entry: Entry, accepted: bool) -> None:
    """Check that a restricted licence was accepted.

    Raises:
        InputError: it was not.
    """
    if entry.restricted and not accepted:
        what = "unknown" if entry.licence == "unknown" else f"{entry.licence}, which forbids commercial use"
        raise InputError(
            f"{entry.name}: its licence is {what}; read it at its source ({entry.source or 'none known'}) and give "
            "--accept-licence"
        )
