"""Attention: ``attend()`` and ``Mask``, over xformers or mslk on CUDA and PyTorch elsewhere."""

from typing import TYPE_CHECKING

from tsfm_data.lazy import lazy_exports

if TYPE_CHECKING:
    from tsfm.attention.dispatch import Mask, attend, attend_reference, kernel_name
    from tsfm.attention.dropout import Dropout
    from tsfm.attention.libraries import load_library, load_mslk, xformers_problem

__all__ = [
    "Dropout",
    "Mask",
    "attend",
    "attend_reference",
    "kernel_name",
    "load_library",
    "load_mslk",
    "xformers_problem",
]
__getattr__ = lazy_exports(__name__, __file__)
