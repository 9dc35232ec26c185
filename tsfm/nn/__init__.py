"""Layers, heads, scalers and predictive distributions that several models share."""

from typing import TYPE_CHECKING

from tsfm_data.lazy import lazy_exports

if TYPE_CHECKING:
    from tsfm.nn.distributions import Distribution, LogNormal, Mixture, NarrowNormal, NegativeBinomial, StudentT
    from tsfm.nn.heads import ConformalIntervals, PointHead, QuantileHead, masked_mean
    from tsfm.nn.layers import Activation, PostNormBlock, RMSNorm, Rotary, rotary_angles
    from tsfm.nn.memory import keep_large_blocks
    from tsfm.nn.products import onednn_products
    from tsfm.nn.quantiles import (
        DEFAULT_LEVELS,
        check_levels,
        interpolate_quantiles,
        mean_of_quantiles,
        mean_pinball_loss,
        median_in_time,
        pinball_loss,
        pooled_quantiles,
        weighted_quantiles,
    )
    from tsfm.nn.scaler import WindowScale, packed_scale, standardise_windows, window_scale
    from tsfm.nn.special import asinh, sinh, softplus
    from tsfm.nn.t5 import NORM_EPS, T5Attention, T5FeedForward, t5_block
    from tsfm.nn.transformer import ResidualMLP, Stack

__all__ = [
    "DEFAULT_LEVELS",
    "NORM_EPS",
    "Activation",
    "ConformalIntervals",
    "Distribution",
    "LogNormal",
    "Mixture",
    "NarrowNormal",
    "NegativeBinomial",
    "PointHead",
    "PostNormBlock",
    "QuantileHead",
    "RMSNorm",
    "ResidualMLP",
    "Rotary",
    "Stack",
    "StudentT",
    "T5Attention",
    "T5FeedForward",
    "WindowScale",
    "asinh",
    "check_levels",
    "interpolate_quantiles",
    "keep_large_blocks",
    "masked_mean",
    "mean_of_quantiles",
    "mean_pinball_loss",
    "median_in_time",
    "onednn_products",
    "packed_scale",
    "pinball_loss",
    "pooled_quantiles",
    "rotary_angles",
    "sinh",
    "softplus",
    "standardise_windows",
    "t5_block",
    "weighted_quantiles",
    "window_scale",
]
__getattr__ = lazy_exports(__name__, __file__)
