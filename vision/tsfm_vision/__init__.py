"""Image models of the suite. Importing the package registers its backbones with timm, and those of other packages.

``backbones`` holds the models, ``weights`` their folders, ``evaluation`` scores and maps, ``training`` the Lightning
modules and the recipe, ``commands`` what ``tsfm image`` runs. Another package adds backbones by an entry point of the
group ``tsfm.backbones``: a module that registers them when it is imported.
"""

from tsfm_data.errors import InputError
from tsfm_data.plugins import entry_points, load, warn_once
from tsfm_vision.backbones import TNT, BiFormer, ILlama, PoolFormer, PyramidTNT

__all__ = ["TNT", "BiFormer", "ILlama", "PoolFormer", "PyramidTNT"]

for _entry in entry_points("tsfm.backbones"):
    try:
        load(_entry, f"the backbones {_entry.name}")
    except InputError as _error:
        warn_once(str(_error))
