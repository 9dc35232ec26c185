"""Transformer foundation models for time series: train, scale, evaluate, download, fine-tune and forecast."""

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tsfm.inference import Model, TSFMForecaster, load

__all__ = ["Model", "TSFMForecaster", "__version__", "load"]
__version__ = "0.1.0"

# An uninstalled checkout keeps the sibling packages one folder further in: make `import tsfm` enough there too.
_checkout = Path(__file__).resolve().parent.parent
for _package, _folder in (("tsfm_data", "data"), ("tsfm_vision", "vision")):
    if (_checkout / _folder / _package).is_dir() and importlib.util.find_spec(_package) is None:
        sys.path.append(str(_checkout / _folder))

from tsfm_data.lazy import lazy_exports  # noqa: E402 - after the checkout's folders are on the path

__getattr__ = lazy_exports(__name__, __file__)
