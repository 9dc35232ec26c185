"""Transformer foundation models for time series: train, scale, evaluate, download, fine-tune and forecast."""

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tsfm.inference import Model, TSFMForecaster, load

__all__ = ["Model", "TSFMForecaster", "__version__", "load"]
__version__ = "0.1.0"

# An uninstalled checkout keeps the sibling packages one folder further in: make `import tsfm` enough there too.
_checkout = Path(__file__).resolve().parent.parent
for _package, _folder in (("tsfm_data", "data"), ("tsfm_vision", "vision")):
    if (_checkout / _folder / _package).is_dir() and importlib.util.find_spec(_package) is None:
        sys.path.append(str(_checkout / _folder))

# Imported when asked for: they need PyTorch, and the command's help shall not wait for it.
_LATE = {"Model": "tsfm.inference.api", "load": "tsfm.inference.api", "TSFMForecaster": "tsfm.inference.estimator"}


def __getattr__(name: str) -> Any:
    if name in _LATE:
        return getattr(importlib.import_module(_LATE[name]), name)
    raise AttributeError(f"module 'tsfm' has no attribute {name!r}")
