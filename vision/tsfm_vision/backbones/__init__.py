"""The image models: one file per family, each registered with timm, and the layers that they are made of."""

from tsfm_vision.backbones.biformer import BiFormer
from tsfm_vision.backbones.checkpoints import family_of, fitting, load_state, load_weights
from tsfm_vision.backbones.illama import ILlama, rotary_table
from tsfm_vision.backbones.poolformer import PoolFormer
from tsfm_vision.backbones.pyramid_tnt import PyramidTNT
from tsfm_vision.backbones.routing import BiLevelRoutingAttention
from tsfm_vision.backbones.soft_mask import Schedule, rates, rotary_of
from tsfm_vision.backbones.tnt import TNT

__all__ = [
    "TNT",
    "BiFormer",
    "BiLevelRoutingAttention",
    "ILlama",
    "PoolFormer",
    "PyramidTNT",
    "Schedule",
    "family_of",
    "fitting",
    "load_state",
    "load_weights",
    "rates",
    "rotary_of",
    "rotary_table",
]
