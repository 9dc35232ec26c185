"""An estimator in the style of scikit-learn and sktime: ``TSFMForecaster().fit(table).predict(24)``."""

import inspect
from collections.abc import Sequence
from typing import Any

from tsfm.inference.api import Model, Table, load, series_of
from tsfm.nn import DEFAULT_LEVELS
from tsfm_data.errors import InputError, unknown_name
from tsfm_data.io import like


class TSFMForecaster:
    """A forecaster that is fitted to a table and then forecasts past its end.

    Args:
        model: name or folder of a model, or a baseline; None takes the model that ships with the package.
        method: "full", "lora" or "head" fine-tunes in ``fit``; None forecasts zero-shot.
        horizon: default steps to forecast for ``fit`` and ``predict``; fine-tuning needs it.
        levels: quantile levels.
        options: other fields of ``tsfm.training.finetuning.Recipe``, such as {"steps": 100, "seed": 1}.

    Attributes:
        model_: the model that forecasts, after ``fit``.
    """

    model_: Model

    def __init__(
        self,
        model: str | None = None,
        method: str | None = None,
        horizon: int | None = None,
        levels: Sequence[float] = DEFAULT_LEVELS,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.method = method
        self.horizon = horizon
        self.levels = levels
        self.options = options

    def fit(self, table: Table, horizon: int | None = None, **columns: Any) -> "TSFMForecaster":
        """Read the histories of a table; fine-tune on them if a method is set.

        Args:
            table: as for ``tsfm.Model.forecast``.
            horizon: steps to forecast; None takes that of the estimator.
            **columns: roles of columns and frequency, as for ``tsfm_data.io.tables.read_series``.

        Raises:
            InputError: an invalid table, or no horizon for fine-tuning.
        """
        model, series = load(self.model), series_of(table, **columns)
        steps = horizon or self.horizon
        if self.method is not None:
            if steps is None:
                raise InputError(
                    "expected a horizon to fine-tune for, found none: fit(table, horizon=24), for instance"
                )
            model = model.finetune(series, steps, self.method, **(self.options or {}))
        self.model_, self.series_, self.horizon_, self.table_ = model, series, steps, table
        return self

    def predict(self, horizon: int | None = None) -> Any:
        """Forecast past the end of the histories.

        Args:
            horizon: steps to forecast; None takes that of ``fit`` or of the estimator.

        Returns:
            As ``tsfm.Model.forecast``.

        Raises:
            InputError: not fitted yet, or no horizon is known.
        """
        if not hasattr(self, "model_"):
            raise InputError("expected a fitted forecaster, found one without series: call fit(table) first")
        steps = horizon if horizon is not None else self.horizon_
        if steps is None:
            raise InputError("expected a horizon, found none: predict(24), for instance")
        return like(self.table_, self.model_.forecast(self.series_, steps, levels=self.levels))

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments of the constructor, for ``clone`` and parameter searches of scikit-learn."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **params: Any) -> "TSFMForecaster":
        """Change arguments of the constructor.

        Raises:
            InputError: no such argument.
        """
        for name, value in params.items():
            if name not in self.get_params():
                raise unknown_name("parameter", name, self.get_params())
            setattr(self, name, value)
        return self
