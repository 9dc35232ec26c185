"""Attention: ``attend()`` and ``Mask``, over xformers on CUDA and PyTorch elsewhere."""

from typing import TYPE_CHECKING

from tsfm_data.lazy import lazy_exports

if TYPE_CHECKING:
    from tsfm.attention.dispatch import Mask, attend, kernel_name, xformers_problem
    from tsfm.attention.dropout import Dropout

__all__ = ["Dropout", "Mask", "attend", "kernel_name", "xformers_problem"]
__getattr__ = lazy_exports(__name__, __file__)
