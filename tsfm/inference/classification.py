"""Classifiers of series: a probe on their embeddings, fitted in closed form.

The probe is kernel ridge regression of the classes (one against the others, +1 and -1) on standardised embeddings, with
a Gaussian kernel whose width is the median distance. Each series is left out once, which costs nothing in closed form:
the errors choose the penalty, and the temperature that turns scores into calibrated probabilities.

Shapes: N series, M of them that were fitted, D numbers of a vector, K classes.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Float64, Int
from safetensors.numpy import save_file

import tsfm
from tsfm.inference.embedding import embed, group_weights
from tsfm.models import Forecaster
from tsfm.weights import CLASSIFIER, ENCODER, load, read_safetensors, save
from tsfm_data.errors import InputError
from tsfm_data.evaluation import Report
from tsfm_data.images import log_loss, score
from tsfm_data.io import SeriesSet, atomic_folder, check_record, check_version, read_record

FORMAT_VERSION = 1
PENALTIES = tuple(10.0 ** (np.arange(-6, 7) / 2))
TEMPERATURES = tuple(np.geomspace(0.02, 5, 30))
OFFSET = 4.0  # added to the kernel, so that the mean score of a class is hardly penalised
MOST_STANDARD = 5.0  # standard deviations at which the numbers of a vector are clipped
MOST_SERIES = 4000  # that are fitted; time grows with the cube of their number


@dataclass(frozen=True)
class Probe:
    """A fitted probe.

    Attributes:
        centre, scale: what standardises a vector; a scale of 0 takes a number out.
        support: standardised vectors of the series that were fitted.
        width: the median of their squared distances.
        weights: of each of them in the score of each class.
        temperature: scores are divided by it before the softmax.
        left_out: probabilities of each fitted series from all others, to judge the probe.
    """

    centre: Float64[np.ndarray, " D"]
    scale: Float64[np.ndarray, " D"]
    support: Float64[np.ndarray, "M D"]
    width: float
    weights: Float64[np.ndarray, "M K"]
    temperature: float
    left_out: Float64[np.ndarray, "M K"]

    @classmethod
    def fit(
        cls, x: Float[np.ndarray, "M D"], labels: Int[np.ndarray, " M"], groups: Float[np.ndarray, " D"]
    ) -> "Probe":
        """Fit vectors with classes 0 to K - 1.

        Args:
            x: the vectors.
            labels: their classes; every class has a vector.
            groups: weights of the numbers of a vector once they are standardised.
        """
        centre, spread = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
        moves = spread > 1e-6 * np.abs(centre)
        scale = np.where(moves, groups / np.where(moves, spread, 1), 0)
        support = standard(x, centre, scale, groups)
        apart = squared_distances(support, support)
        width = float(np.median(apart[~np.eye(len(x), dtype=bool)])) or 1.0
        values, vectors = np.linalg.eigh(np.exp(-apart / width) + OFFSET)
        target = np.where(labels[:, None] == np.arange(labels.max() + 1), 1.0, -1.0)
        best = (np.inf, target, target)
        for penalty in PENALTIES:
            inverse = (vectors / (values.clip(0) + penalty)) @ vectors.T
            weights = inverse @ target
            error = weights / np.diag(inverse)[:, None]  # of each series, from a fit of all others
            best = min(best, (float((error**2).mean()), weights, target - error), key=lambda found: found[0])
        _, weights, scores = best
        temperature = min(TEMPERATURES, key=lambda t: log_loss(softmax(scores / t), labels))
        return cls(centre, scale, support, width, weights, temperature, softmax(scores / temperature))

    def probabilities(self, x: Float[np.ndarray, "N D"], groups: Float[np.ndarray, " D"]) -> Float64[np.ndarray, "N K"]:
        """Of each class; arguments as for ``fit``."""
        kernel = np.exp(-squared_distances(standard(x, self.centre, self.scale, groups), self.support) / self.width)
        return softmax((kernel + OFFSET) @ self.weights / self.temperature)


def standard(x: np.ndarray, centre: np.ndarray, scale: np.ndarray, groups: np.ndarray) -> Float64[np.ndarray, "N D"]:
    """Vectors in standard deviations of those that were fitted, times the weights of their groups."""
    return np.clip((x - centre) * scale, -MOST_STANDARD * groups, MOST_STANDARD * groups)


def squared_distances(a: np.ndarray, b: np.ndarray) -> Float64[np.ndarray, "N M"]:
    """Between the rows of two arrays."""
    return ((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T).clip(0)


def softmax(scores: np.ndarray) -> Float64[np.ndarray, "N K"]:
    """Probabilities from scores."""
    likely = np.exp(scores - scores.max(1, keepdims=True))
    return likely / likely.sum(1, keepdims=True)


@dataclass(frozen=True)
class SeriesClassifier:
    """A classifier of series: a zero-shot model and a probe on its embeddings.

    Attributes:
        encoder: the zero-shot model.
        probe: the probe.
        classes: names of the classes.
        label: column of the classes in the table that was fitted.
        variates: names of the variates; the vectors of an item's variates are one after the other.
        name: that of its folder.
        notes: lines for the user.
    """

    encoder: Forecaster
    probe: Probe
    classes: tuple[str, ...]
    label: str
    variates: tuple[str, ...]
    name: str = "classifier"
    notes: tuple[str, ...] = ()

    @classmethod
    def fit(
        cls, encoder: Forecaster, series: SeriesSet, label: str = "label", batch_size: int = 256, seed: int = 0
    ) -> "SeriesClassifier":
        """Fit labelled series, of any lengths.

        Args:
            encoder: a zero-shot model.
            series: a long table with a column of classes, which is constant within each series.
            label: name of this column.
            batch_size: windows at a time.
            seed: of the choice of series if there are more than ``MOST_SERIES``.

        Raises:
            InputError: no such column, a series without a label, or fewer than two classes.
        """
        names, notes = labels_of(series, label), []
        if len(names) > MOST_SERIES:
            notes.append(f"{MOST_SERIES:,} of {len(names):,} series are fitted, drawn at random")
            keep = np.sort(np.random.default_rng(seed).permutation(len(names))[:MOST_SERIES])
            series, names = series.select(list(keep)), names[keep]
        classes, labels, counts = np.unique(names, return_inverse=True, return_counts=True)
        if len(classes) < 2:
            raise InputError(
                f"{series.source}: expected at least two classes in column {label!r}, found {str(classes[0])!r} alone: "
                "add series of another class"
            )
        if (rare := classes[counts == 1]).size:
            notes.append(f"{len(rare)} classes have one series, which cannot be checked: {', '.join(rare[:5])}")
        x = vectors_of(encoder, series, batch_size)
        probe = Probe.fit(x, labels, groups_of(x, series))
        return cls(encoder, probe, tuple(map(str, classes)), label, series.variates, notes=tuple(notes))

    def probabilities(self, series: SeriesSet, batch_size: int = 256) -> Float64[np.ndarray, "N K"]:
        """Of each class, one row per item.

        Raises:
            InputError: other variates than those that were fitted.
        """
        if len(series.variates) != len(self.variates):
            raise InputError(
                f"{series.source}: expected the variates {', '.join(self.variates)}, found "
                f"{', '.join(series.variates)}: name them with target (--target)"
            )
        x = vectors_of(self.encoder, series, batch_size)
        return self.probe.probabilities(x, groups_of(x, series))

    def predict(self, series: SeriesSet, batch_size: int = 256) -> pd.DataFrame:
        """One row per item: item_id, the most probable class, its probability, and that of each class."""
        found = self.probabilities(series, batch_size)
        best = {"prediction": np.array(self.classes)[found.argmax(1)], "probability": found.max(1)}
        each = pd.DataFrame(found, columns=[f"p({name})" for name in self.classes])
        return pd.concat([pd.DataFrame({"item_id": list(series.item_ids), **best}), each], axis=1)

    def evaluate(
        self, series: SeriesSet, label: str | None = None, batch_size: int = 256
    ) -> tuple[Report, np.ndarray, np.ndarray, tuple[str, ...]]:
        """Scores of labelled series, and what they are made of: probabilities, labels and names of the classes.

        A class that the classifier does not know has the probability 0.

        Raises:
            InputError: as ``fit`` and ``probabilities``.
        """
        names = labels_of(series, label or self.label)
        unknown = sorted({*names} - {*self.classes})
        classes = (*self.classes, *unknown)
        found = np.pad(self.probabilities(series, batch_size), ((0, 0), (0, len(unknown))))
        labels = np.array([classes.index(name) for name in names])
        report = score(found, labels, classes, series.name, self.name, "series")
        if unknown:
            count = int(np.isin(names, unknown).sum())
            report.notes.append(
                f"{count} series are of classes that were not fitted, so errors: {', '.join(unknown[:5])}"
            )
        return report, found, labels, classes

    def save(self, folder: str | Path) -> None:
        """Write a model folder, which has that of the encoder in it."""
        config = {"format_version": FORMAT_VERSION, "model_type": CLASSIFIER, "label": self.label}
        config |= {"classes": self.classes, "variates": self.variates, "tsfm_version": tsfm.__version__}
        numbers = {name: np.asarray(value, np.float64) for name, value in vars(self.probe).items()}
        with atomic_folder(folder) as temporary:
            (temporary / "config.json").write_text(json.dumps(config, indent=1) + "\n")
            save_file(numbers, temporary / "model.safetensors", metadata={"format": "pt"})
            card = f"Classes of series: {', '.join(self.classes)}. Use: tsfm classify predict TABLE --model FOLDER\n"
            (temporary / "README.md").write_text(card)
            save(self.encoder, temporary / ENCODER)

    @classmethod
    def load(cls, folder: str | Path) -> "SeriesClassifier":
        """Read what ``save`` wrote.

        Raises:
            InputError: a file is missing, damaged, or no classifier of series.
        """
        path, hint = Path(folder), "give the folder that tsfm classify fit wrote"
        file, what = path / "config.json", "a classifier of series"
        plain = read_record(file, dict, what, hint=hint)
        if plain.get("model_type") != CLASSIFIER:
            raise InputError(f"{folder}: expected {what}, found {plain.get('model_type')!r:.60}: {hint}")
        config = check_record(check_version(plain, FORMAT_VERSION, file), Config, file, what, hint=hint)
        numbers: dict[str, Any] = {key: x.numpy() for key, x in read_safetensors(path / "model.safetensors").items()}
        shapes = {key: x.shape for key, x in numbers.items()}
        rows, size = shapes.get("support", (0, 0))[:2] or (0, 0)
        fits = {"centre": (size,), "scale": (size,), "support": (rows, size), "width": (), "temperature": ()}
        fits |= {"weights": (rows, len(config.classes)), "left_out": (rows, len(config.classes))}
        if shapes != fits:
            raise InputError(f"{path / 'model.safetensors'}: expected tensors that fit {file}, found others: {hint}")
        arrays: dict[str, Any] = {key: float(x) if x.ndim == 0 else x for key, x in numbers.items()}
        probe = Probe(**arrays)
        return cls(
            load(path / ENCODER),
            probe,
            tuple(config.classes),
            config.label,
            tuple(config.variates),
            path.resolve().name,
        )


@dataclass(frozen=True)
class Config:
    """The content of ``config.json``; attributes as in ``SeriesClassifier``."""

    label: str
    classes: list[str]
    variates: list[str]


def labels_of(series: SeriesSet, label: str) -> np.ndarray:
    """The class of each item, as text.

    Raises:
        InputError: there is no such column with one value per series, or a value is missing.
    """
    if series.static is None or label not in series.static:
        found = "none" if series.static is None else ", ".join(map(str, series.static.columns))
        raise InputError(
            f"{series.source}: expected a column {label!r} with one class per series of a long table, found {found}: "
            "name it with label (--label)"
        )
    cells = series.static[label]
    if cells.isna().any():
        lacking = np.flatnonzero(cells.isna())
        raise InputError(
            f"{series.source}, column {label!r}: expected a class of every series, found none in {len(lacking)}, the "
            f"first {series.item_ids[lacking[0]]!r}: fill it in, or leave the series out"
        )
    return np.array([f"{cell:g}" if isinstance(cell, float) else str(cell) for cell in cells])


def vectors_of(encoder: Forecaster, series: SeriesSet, batch_size: int) -> Float[np.ndarray, "N D"]:
    """One vector per item: those of its variates, one after the other."""
    return embed(encoder, series, batch_size).reshape(len(series), -1)


def groups_of(x: np.ndarray, series: SeriesSet) -> Float64[np.ndarray, " D"]:
    """Weights of the numbers of such vectors."""
    return np.tile(group_weights(x.shape[1] // len(series.variates)), len(series.variates))
