"""Pretraining corpora: building, memory-mapped storage, sampling, augmentation, packing."""

from typing import TYPE_CHECKING

from tsfm_data.lazy import lazy_exports

if TYPE_CHECKING:
    from tsfm_data.corpus.augmentation import AugmentConfig
    from tsfm_data.corpus.building import build
    from tsfm_data.corpus.datamodule import PretrainingDataModule
    from tsfm_data.corpus.loader import CorpusLoader
    from tsfm_data.corpus.overlap import check_overlap
    from tsfm_data.corpus.packing import PackedLoader, PackedRows
    from tsfm_data.corpus.spectra import autocorrelation, catalogue_sources, power_spectrum, real_windows, store_sources
    from tsfm_data.corpus.store import ARRAYS, FORMAT, MANIFEST, SOURCES, Store, current_path

__all__ = [
    "ARRAYS",
    "FORMAT",
    "MANIFEST",
    "SOURCES",
    "AugmentConfig",
    "CorpusLoader",
    "PackedLoader",
    "PackedRows",
    "PretrainingDataModule",
    "Store",
    "autocorrelation",
    "build",
    "catalogue_sources",
    "check_overlap",
    "current_path",
    "power_spectrum",
    "real_windows",
    "store_sources",
]
__getattr__ = lazy_exports(__name__, __file__)
