"""Image models of the suite. Importing the package registers its backbones with timm.

``backbones`` holds the models, ``weights`` their folders, ``evaluation`` scores and maps, ``training`` the Lightning
modules and the recipe, ``commands`` what ``tsfm image`` runs.
"""

from tsfm_vision.backbones import TNT, BiFormer, ILlama, PoolFormer, PyramidTNT

__all__ = ["TNT", "BiFormer", "ILlama", "PoolFormer", "PyramidTNT"]
