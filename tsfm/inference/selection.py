"""The choice of a backtest as a predictor: one model, one model per series, or a weighted mean of quantiles.

Its intervals may be calibrated by factors from earlier windows (split-conformal prediction: Vovk et al. 2005;
nested sets around the median: Gupta et al. 2022). Axes: B windows, H horizon steps, V variates, S series, M members,
Q requested levels, L levels of ``tsfm_data.evaluation.LEVELS``.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Le, Len
from jaxtyping import Float, Float64
from torch import Tensor
from typing_extensions import TypedDict

import tsfm
from tsfm.models import Forecaster
from tsfm.weights import load, local_folder, save
from tsfm_data.errors import InputError
from tsfm_data.evaluation import LEVELS, Predictor, bind, forecast_windows, get_baseline
from tsfm_data.io import SeriesSet, atomic_folder, check_record, check_version, read_record
from tsfm_data.windows import Batch, Forecast

MODEL_TYPE, FORMAT_VERSION = "selection", 1
MEDIAN = LEVELS.index(0.5)


Share = Annotated[float, Ge(0), Le(1)]
Factors = Annotated[list[Annotated[list[Annotated[float, Ge(0)]], Len(len(LEVELS), len(LEVELS))]], Len(1, 10**6)]


class SelectionConfig(TypedDict):
    """The content of ``config.json``: see ``Selection``."""

    members: Annotated[list[str], Len(1, 1000)]
    weights: list[Share]
    series: dict[str, list[Share]]
    factors: Factors | None
    covariates: bool
    facts: dict[str, Any]


@dataclass(frozen=True)
class Member:
    """A model that takes part in a backtest.

    Attributes:
        name: its name in reports.
        predictor: the model or baseline.
        known: whether it can be loaded by its name anywhere; if not, its weights are saved with a choice.
    """

    name: str
    predictor: Predictor
    known: bool = False


@dataclass(frozen=True, eq=False)
class Selection:
    """Weighted means of the quantiles of several models; weights may differ between series.

    Attributes:
        members: the models.
        weights: weights of the members for series that are not in ``series``; they sum to 1.
        series: id of a series -> its weights of the members.
        factors: factors of the distance between each quantile and the median, by step; steps beyond use the last. None
            leaves intervals unchanged. The mean is never changed.
        covariates: whether members use the covariates of a table.
        facts: origin of the choice, for readers of the file.
        name: its name in reports.
        shares: weights for every variate of the items that it is bound to.
    """

    members: tuple[Member, ...]
    weights: tuple[float, ...]
    series: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    factors: Float64[np.ndarray, "H L"] | None = None
    covariates: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)
    name: str = MODEL_TYPE
    shares: Float64[Tensor, "items V M"] | None = None

    dtype = torch.float64

    def __post_init__(self) -> None:
        marks = sorted({m.predictor.marks for m in self.members if m.predictor.marks is not None})
        if len(marks) > 1:
            raise InputError(
                f"expected models with the same calendar features, found {' and '.join(marks)}: leave one out"
            )

    @property
    def context(self) -> int | None:
        """The longest context of the members; None if one has no limit."""
        contexts = [member.predictor.context for member in self.members]
        return None if None in contexts else max(context for context in contexts if context is not None)

    @property
    def marks(self) -> str | None:
        """The calendar features of the members."""
        return next((m.predictor.marks for m in self.members if m.predictor.marks is not None), None)

    @property
    def handles_gaps(self) -> bool:
        """Whether all members handle long gaps."""
        return all(getattr(member.predictor, "handles_gaps", False) for member in self.members)

    def bind(self, series: SeriesSet) -> "Selection":
        """A copy with the weights of the items of a set, and with members that are bound to it."""
        rows = [self.series.get(name, self.weights) for name in series.univariate().item_ids]
        shares = torch.tensor(rows, dtype=self.dtype).reshape(len(series), len(series.variates), len(self.members))
        members = tuple(replace(member, predictor=bind(member.predictor, series)) for member in self.members)
        return replace(self, shares=shares, members=members)

    def predict(self, batch: Batch, levels: Sequence[float]) -> Forecast:
        """The weighted mean of the means and quantiles of the members, calibrated."""
        asked = sorted({*levels, 0.5})
        share_BVM = torch.tensor(self.weights, dtype=self.dtype).expand(len(batch), batch.past.shape[2], -1)
        if self.shares is not None and batch.item is not None:
            share_BVM = self.shares[batch.item]
        shares, forecasts = [], []
        for m, member in enumerate(self.members):
            if bool(share_BVM[..., m].any()):
                forecast = forecast_windows(member.predictor, batch.to(member.predictor.dtype), asked)
                both = torch.cat([forecast.mean[..., None], forecast.quantiles], dim=-1)
                forecasts.append(both.detach().cpu().double().numpy())
                shares.append(share_BVM[:, None, :, m, None].numpy())
        mean, quantiles = np.split(combine(shares, forecasts), [1], axis=-1)
        if self.factors is not None:
            quantiles = stretch(quantiles, asked, self.factors)
        picked = torch.from_numpy(quantiles)[..., [asked.index(level) for level in levels]]
        return Forecast(torch.from_numpy(mean[..., 0]), picked, tuple(levels))

    def save(self, folder: str | Path) -> None:
        """Write a model folder: names of the members, weights, factors, and the members that have no known name.

        Raises:
            InputError: a member of another package, which we cannot save.
        """
        names = [member.name if member.known else f"member{m}" for m, member in enumerate(self.members)]
        config: dict[str, Any] = {"format_version": FORMAT_VERSION, "model_type": MODEL_TYPE}
        config |= {"members": names, "weights": self.weights, "series": dict(self.series)}
        config |= {"factors": None if self.factors is None else self.factors.tolist()}
        config |= {"covariates": self.covariates, "facts": dict(self.facts), "tsfm_version": tsfm.__version__}
        with atomic_folder(folder) as temporary:
            (temporary / "config.json").write_text(json.dumps(config, indent=1, allow_nan=False) + "\n")
            for member, name in zip(self.members, names, strict=True):
                if member.known:
                    continue
                if isinstance(member.predictor, Forecaster):
                    save(member.predictor, temporary / name)
                elif isinstance(member.predictor, Selection):
                    member.predictor.save(temporary / name)
                else:
                    raise InputError(f"expected models that can be saved, found {member.name}: leave it out")

    @classmethod
    def load(cls, folder: Path) -> "Selection":
        """Read what ``save`` wrote; the name is that of the folder.

        Raises:
            InputError: the file or a member is damaged or missing.
        """
        file = folder / "config.json"
        what, hint = "the choice of a tsfm backtest", "run tsfm backtest again"
        plain = check_version(read_record(file, dict, what, hint=hint), FORMAT_VERSION, file)
        config = check_record(plain, SelectionConfig, file, what, hint=hint)
        names, rows = config["members"], [config["weights"], *config["series"].values()]
        factors = None if config["factors"] is None else np.array(config["factors"], np.float64)
        fits = all(len(row) == len(names) and math.isclose(math.fsum(row), 1, rel_tol=1e-5) for row in rows)
        if not fits:
            raise InputError(
                f"expected a weight of each of {len(names)} members in every row of {file}, which sum to 1, found "
                f"others: {hint}"
            )
        series = {name: tuple(map(float, row)) for name, row in config["series"].items()}
        folder = folder.resolve()
        name = folder.parent.name if folder.name == "model" else folder.name
        members = tuple(read_member(member, folder) for member in names)
        weights = tuple(map(float, config["weights"]))
        return cls(members, weights, series, factors, config["covariates"], config["facts"], name)


def read_member(name: Any, folder: Path) -> Member:
    """A member by its name, or from its subfolder of ``folder``; never from anywhere else.

    Raises:
        InputError: there is no such model.
    """
    baseline = get_baseline(str(name))
    if baseline is not None:
        return Member(name, baseline, known=True)
    if re.fullmatch(r"member\d+", str(name)):
        inner = folder / name
        return Member(name, Selection.load(inner) if selection_folder(str(inner)) == inner else load(inner))
    if local_folder(str(name)) is None:
        raise InputError(
            f"expected the model {name!r} that {folder} uses, found none: download it with tsfm weights pull {name}"
        )
    return Member(name, load(name), known=True)


def selection_folder(model: str) -> Path | None:
    """The folder with the choice of a backtest: the given one or its subfolder model; None if there is no choice."""
    for folder in (Path(model), Path(model) / "model"):
        with suppress(OSError, ValueError):  # of a path, or of another file
            if read_record(folder / "config.json", dict, "a config").get("model_type") == MODEL_TYPE:
                return folder
    return None


def combine(weights: Sequence[np.ndarray] | np.ndarray, forecasts: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Weighted means of forecasts; exactly the forecast if all are equal, such as those of a constant.

    Args:
        weights: of each member, broadcastable to its forecasts.
        forecasts: of each member.
    """
    mean = np.zeros_like(forecasts[0])
    low, high = np.full_like(mean, np.inf), np.full_like(mean, -np.inf)
    for weight, values in zip(weights, forecasts, strict=True):
        mean += weight * values
        low = np.where(weight > 0, np.minimum(low, values), low)
        high = np.where(weight > 0, np.maximum(high, values), high)
    return np.clip(mean, low, high)


def stretch(
    quantiles: Float[np.ndarray, "*windows H S Q"], levels: Sequence[float], factors: Float64[np.ndarray, "H2 L"]
) -> Float64[np.ndarray, "*windows H S Q"]:
    """Quantiles with their distances from the median multiplied by a factor for each step and level.

    Args:
        quantiles: forecast quantiles.
        levels: their levels, 0.5 included. Factors are interpolated between ``LEVELS`` and constant outside.
        factors: factors by step; steps beyond use the last.
    """
    steps = np.minimum(np.arange(quantiles.shape[-3]), len(factors) - 1)
    table = np.stack([np.interp(levels, LEVELS, factors[step]) for step in steps])[:, None]
    median = quantiles[..., [list(levels).index(0.5)]]
    return median + table * (quantiles - median)


def stretch_factors(
    quantiles: Float64[np.ndarray, "N H S L"], label: Float64[np.ndarray, "N H S"]
) -> Float64[np.ndarray, "H L"]:
    """Split-conformal factors of the quantiles, for each step.

    The score of a true value is the factor that moves the quantile onto it. Of n scores, the quantile of level q > 0.5
    takes the ``ceil((n + 1) q)``-th smallest. A new value that is exchangeable with these is then below the quantile
    with a probability of at least q; levels below 0.5 are the mirror image. If a quantile equals the median, no factor
    moves it, so true values beyond it are left out.

    Args:
        quantiles: forecasts at ``LEVELS``.
        label: true values, NaN if not observed.

    Returns:
        Factors; NaN if there are too few scores.
    """
    factors = np.full((label.shape[1], len(LEVELS)), np.nan)
    factors[:, MEDIAN] = 1.0
    for level in (level for level in range(len(LEVELS)) if level != MEDIAN):
        sign = np.sign(level - MEDIAN)
        beyond = sign * (label - quantiles[..., MEDIAN])
        distance = sign * (quantiles[..., level] - quantiles[..., MEDIAN])
        with np.errstate(divide="ignore", invalid="ignore"):
            score_NHS = np.where(beyond > 0, beyond / distance, np.where(np.isnan(beyond), np.nan, 0.0))
        for step in range(len(factors)):
            scores = np.sort(score_NHS[:, step][np.isfinite(score_NHS[:, step])])
            rank = int(np.ceil((len(scores) + 1) * max(LEVELS[level], 1 - LEVELS[level]) - 1e-9))
            if rank <= len(scores):
                factors[step, level] = scores[rank - 1]
    return factors
