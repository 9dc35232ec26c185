"""Vision backbones of the suite; importing it registers them with timm."""

from tsfm_vision import biformer, illama, poolformer, pyramid_tnt, tnt

__all__ = ["biformer", "illama", "poolformer", "pyramid_tnt", "tnt"]
