"""Forecasters small enough for a test below a second."""

from dataclasses import replace
from typing import Any

import torch

from tsfm.models.base import Forecaster
from tsfm.models.registry import OWN, model_class, model_classes
from tsfm.models.zeroshot.encoder import ZeroShotEncoder
from tsfm.models.zeroshot.recipe import ZeroShotConfig
from tsfm_data.windows.batch import Batch

CONTEXT, HORIZON, VARIATES = 24, 6, 3
POINT = ("itransformer",)  # models that may also be trained as a point forecast


def tiny() -> ZeroShotEncoder:
    torch.manual_seed(0)
    return ZeroShotEncoder(32, 8, ZeroShotConfig(d_model=16, layers=1, heads=2, patch_size=8)).eval()


def make_batch(count: int = 5, horizon: int = HORIZON, context: int = CONTEXT, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    past = torch.randn(count, context, VARIATES, generator=generator).cumsum(1) + 5
    future = torch.randn(count, horizon, VARIATES, generator=generator)
    marks = torch.rand(count, context + horizon, 4, generator=generator) - 0.5
    return Batch(
        past=past,
        past_observed=torch.ones_like(past, dtype=torch.bool),
        horizon=horizon,
        future=future,
        future_observed=torch.ones_like(future, dtype=torch.bool),
        past_marks=marks[:, :context],
        future_marks=marks[:, context:],
    )


# Choices of a model that the contract holds for, too.
VARIANTS: dict[str, dict[str, Any]] = {"quantile": {}, "point": {"levels": ()}, "auto": {"patch_size": "auto"}}
VARIANTS["any-variate"] = {"any_variate": True}


def has_tiny(kind: type[Forecaster]) -> bool:
    return hasattr(getattr(kind, "config_type", None), "tiny")


# Every registered model. One of another package takes part if its config has ``tiny()``, as all of ours must; one that
# must be bound to its series first has tests of its own.
MODELS = [
    name for name, kind in model_classes().items() if (name in OWN or has_tiny(kind)) and not hasattr(kind, "bind")
]
KINDS = [(name, "quantile") for name in MODELS] + [(name, "point") for name in POINT]
KINDS += [("moirai", "auto"), ("zeroshot-encoder", "any-variate"), ("zeroshot-decoder", "any-variate")]


def make(name: str, kind: str, horizon: int = HORIZON, **sizes: Any) -> Forecaster:
    torch.manual_seed(0)
    kind_of = model_class(name)
    given = {"levels": (0.1, 0.5, 0.9), **VARIANTS[kind], **sizes}
    return kind_of(CONTEXT, horizon, replace(kind_of.config_type.tiny(), **given)).eval()


def with_known(batch: Batch, shift: float = 0.0) -> Batch:
    """The batch with one covariate of the past and one that is known ahead, noise both."""
    generator = torch.Generator().manual_seed(3)
    count, context, horizon = len(batch), batch.past.shape[1], batch.horizon
    x = torch.randn(count, context + horizon, 2, generator=generator)
    seen = torch.ones_like(x[..., :1], dtype=torch.bool)
    return replace(
        batch,
        past_covariates=x[:, :context, :1],
        past_covariates_observed=seen[:, :context],
        known_past=x[:, :context, 1:],
        known_past_observed=seen[:, :context],
        known_future=x[:, context:, 1:] + shift * torch.arange(horizon)[:, None],
        known_future_observed=seen[:, context:],
    )
