"""The record of a fit: the content of ``fit.json``."""

from typing import Any

Record = dict[str, Any]
