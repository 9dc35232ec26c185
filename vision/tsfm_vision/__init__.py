"""Vision backbones of the suite; importing it registers them with timm."""

from tsfm_vision import biformer, illama, poolformer, tnt

__all__ = ["biformer", "illama", "poolformer", "tnt"]
