"""What a backtest chose, as a predictor: one model, a model for each series, or a mean of quantiles of several.

Its intervals may be stretched by factors that earlier windows gave (split-conformal prediction: Vovk et al. 2005;
nested sets around the median: Gupta et al. 2022). Axes: B windows, H horizon steps, V variates, S series, M members,
Q asked levels, L levels of ``tsfm_data.evaluation.LEVELS``.
"""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

import tsfm
from tsfm.models import Forecaster
from tsfm.weights import load, local_folder, save
from tsfm_data.errors import InputError
from tsfm_data.evaluation import LEVELS, Predictor, forecast_windows, get_baseline
from tsfm_data.io import SeriesSet, atomic_folder
from tsfm_data.windows import Batch, Forecast

MODEL_TYPE, FORMAT_VERSION = "selection", 1
MEDIAN = LEVELS.index(0.5)


@dataclass(frozen=True)
class Member:
    """A model that takes part in a backtest.

    Attributes:
        name: what reports call it.
        predictor: the model or baseline.
        known: whether the name alone gives it, wherever it is asked for; if not, its weights are saved with a choice.
    """

    name: str
    predictor: Predictor
    known: bool = False


@dataclass(frozen=True, eq=False)
class Selection:
    """Means of the quantiles of some models, by weights that may differ from series to series.

    Attributes:
        members: the models.
        weights: of each, for a series that is not named in ``series``; they sum to 1.
        series: name of a series -> weights of the members for it.
        factors: what the distance of each quantile from the median is multiplied by, at each step ahead; further steps
            take the last. None leaves the intervals as they are. The mean stays as it is, too.
        covariates: whether members are shown the covariates of a table.
        facts: where it comes from, for the reader of its file.
        name: what reports call it.
        shares: weights of every variate of the items that it was bound to.
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
            raise InputError(f"expected models with the same calendar features, found {' and '.join(marks)}: leave one")

    @property
    def context(self) -> int | None:
        """The longest history that a member uses."""
        contexts = [member.predictor.context for member in self.members]
        return None if None in contexts else max(context for context in contexts if context is not None)

    @property
    def marks(self) -> str | None:
        """Those that the members want."""
        return next((m.predictor.marks for m in self.members if m.predictor.marks is not None), None)

    def bind(self, series: SeriesSet) -> "Selection":
        """The same, ready for the items of a set: it has looked their names up."""
        rows = [self.series.get(name, self.weights) for name in series.univariate().item_ids]
        shares = torch.tensor(rows, dtype=self.dtype).reshape(len(series), len(series.variates), len(self.members))
        return replace(self, shares=shares)

    def predict(self, batch: Batch, levels: Sequence[float]) -> Forecast:
        """The weighted mean of the members' means and quantiles, stretched."""
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
        """Write a model folder: names of the members, weights and factors, and the members that no name gives.

        Raises:
            InputError: a member of another package, which has neither a name nor weights that we can write.
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
                    raise InputError(f"expected models of the suite to save, found {member.name}: leave it out")

    @classmethod
    def load(cls, folder: Path) -> "Selection":
        """Read what ``save`` wrote; the name is that of the folder.

        Raises:
            InputError: the file or a member is damaged or missing.
        """
        file = folder / "config.json"
        plain = json.loads(file.read_text())
        if plain.get("format_version") != FORMAT_VERSION:
            found = plain.get("format_version")
            raise InputError(f"expected format_version {FORMAT_VERSION} in {file}, found {found!r}: upgrade tsfm-suite")
        try:
            names, series, factors = plain["members"], plain["series"], plain["factors"]
            shares = np.array([plain["weights"], *series.values()], np.float64).reshape(1 + len(series), len(names))
            factors = None if factors is None else np.array(factors, np.float64).reshape(-1, len(LEVELS))
            fits = shares.size and (shares >= 0).all() and np.allclose(shares.sum(axis=1), 1)
            fits = fits and (factors is None or (np.isfinite(factors) & (factors >= 0)).all())
            rows = dict(zip(series, map(tuple, shares[1:].tolist()), strict=True))
            covariates, facts = bool(plain["covariates"]), dict(plain["facts"])
        except (AttributeError, KeyError, TypeError, ValueError):
            fits = False
        if not fits:
            raise InputError(f"expected what tsfm backtest writes in {file}, found other numbers or keys: run it again")
        folder = folder.resolve()
        name = folder.parent.name if folder.name == "model" else folder.name
        members = tuple(read_member(member, folder) for member in names)
        return cls(members, tuple(shares[0].tolist()), rows, factors, covariates, facts, name)


def read_member(name: Any, folder: Path) -> Member:
    """A member by its name, or from its folder beside the file that names it; never from anywhere else.

    Raises:
        InputError: there is none.
    """
    baseline = get_baseline(str(name))
    if baseline is not None:
        return Member(name, baseline, known=True)
    if re.fullmatch(r"member\d+", str(name)):
        inner = folder / name
        return Member(name, Selection.load(inner) if selection_folder(str(inner)) == inner else load(inner))
    if local_folder(str(name)) is None:
        raise InputError(f"expected model {name!r} of {folder} at hand, found none: tsfm weights pull it, or leave it")
    return Member(name, load(name), known=True)


def selection_folder(model: str) -> Path | None:
    """Where the choice of a backtest lies, given its folder or the one around it; None if it is anything else."""
    for folder in (Path(model), Path(model) / "model"):
        with suppress(OSError, ValueError, AttributeError):
            if json.loads((folder / "config.json").read_text()).get("model_type") == MODEL_TYPE:
                return folder
    return None


def combine(weights: Sequence[np.ndarray] | np.ndarray, forecasts: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Weighted means of forecasts; of equal forecasts, such as those of a constant, exactly the same.

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
    """Quantiles whose distances from the median are multiplied by a factor for each step and level.

    Args:
        quantiles: as forecast.
        levels: theirs, 0.5 among them. Factors are interpolated between ``LEVELS``; beyond the ends they stay.
        factors: further steps take those of the last.
    """
    steps = np.minimum(np.arange(quantiles.shape[-3]), len(factors) - 1)
    table = np.stack([np.interp(levels, LEVELS, factors[step]) for step in steps])[:, None]
    median = quantiles[..., [list(levels).index(0.5)]]
    return median + table * (quantiles - median)


def stretch_factors(
    quantiles: Float64[np.ndarray, "N H S L"], label: Float64[np.ndarray, "N H S"]
) -> Float64[np.ndarray, "H L"]:
    """The factors with which each quantile would have held what it says, at each step ahead.

    The score of a true value is the factor that would just bring the quantile to it. Of n scores the quantile of level
    q > 0.5 takes the ``ceil((n + 1) q)``-th smallest, so that a new window that is exchangeable with these lies below
    it with probability q at least; levels below 0.5 take the mirror image. A quantile at the median has no distance to
    be stretched: where the truth lies beyond it no factor helps, and the value is left out.

    Args:
        quantiles: forecasts at ``LEVELS``.
        label: what came, NaN where not observed.

    Returns:
        Factors; NaN where the scores are too few.
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
