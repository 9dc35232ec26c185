"""Vision backbones of the suite; importing it registers them with timm."""

from tsfm_vision import poolformer, tnt

__all__ = ["poolformer", "tnt"]
