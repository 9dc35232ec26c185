"""The former name of ``tsfm.training.from_pretrained``, which the configs of earlier runs contain."""

from tsfm.training.from_pretrained import FromPretrained as Pretrained

__all__ = ["Pretrained"]
