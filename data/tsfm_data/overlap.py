"""Which evaluation series a corpus has seen: fingerprints of short blocks, the same under scaling, shift and cutting.

A series is cut into blocks of 32 steps, one after the other (16 steps, every 8, where it has fewer than 96). Of each
block the differences from step to step are divided by their standard deviation and rounded to quarters; the vector of
those integers, hashed to 64 bits, is the block's fingerprint. It does not change when the series is scaled (by a
positive factor) or moved up or down. Blocks with a missing value or with little going on (few different rounded values)
have none: zeros and straight lines are the same everywhere.

The corpus keeps the fingerprints of its blocks; an evaluation series is read at *every* position. So a common stretch
of 63 steps is found wherever it begins in either. What is resampled, filtered or aggregated is not found by content:
the ``groups`` of the catalogue tell of those.
"""

import numpy as np
from jaxtyping import Float, UInt64

BLOCK, SHORT_BLOCK = 32, 16
SHORT_STRIDE, SHORT_SERIES = 8, 96
GRAIN = 0.25  # in standard deviations of the differences
CHUNK = 1 << 15  # blocks hashed at once
# A block with fewer different rounded differences says too little.
DISTINCT = {BLOCK: 12, SHORT_BLOCK: 10}


def _multipliers(width: int) -> UInt64[np.ndarray, " steps"]:
    drawn = np.random.Generator(np.random.PCG64(width)).integers(0, 2**63, width - 1, dtype=np.uint64)
    return drawn * np.uint64(2) + np.uint64(1)


MULTIPLIERS = {width: _multipliers(width) for width in (BLOCK, SHORT_BLOCK)}


def fingerprints(values: Float[np.ndarray, " T"]) -> UInt64[np.ndarray, " blocks"]:
    """The fingerprints that a corpus keeps of one series."""
    if len(values) < SHORT_SERIES:
        return block_hashes(values, SHORT_BLOCK, SHORT_STRIDE)
    return block_hashes(values, BLOCK, BLOCK)


def block_hashes(values: Float[np.ndarray, " T"], width: int, stride: int) -> UInt64[np.ndarray, " blocks"]:
    """Fingerprints of the blocks of ``width`` steps at every ``stride``-th step; blocks that have none are left out.

    Args:
        values: one series; NaN where missing.
        width: 16 or 32.
        stride: steps from one block to the next.
    """
    if len(values) < width:
        return np.zeros(0, np.uint64)
    steps = np.diff(values.astype(np.float64))
    blocks = np.lib.stride_tricks.sliding_window_view(steps, width - 1)[::stride]
    parts = [_hash(blocks[i : i + CHUNK], width) for i in range(0, len(blocks), CHUNK)]
    return np.concatenate(parts)


def _hash(blocks: Float[np.ndarray, "n steps"], width: int) -> UInt64[np.ndarray, " kept"]:
    scale = blocks.std(axis=1)
    good = np.isfinite(scale) & (scale > 0)
    rounded = np.rint(blocks[good] / (GRAIN * scale[good, None])).astype(np.int64)
    ordered = np.sort(rounded, axis=1)
    telling = (np.diff(ordered, axis=1) != 0).sum(axis=1) + 1 >= DISTINCT[width]
    return (rounded[telling].astype(np.uint64) * MULTIPLIERS[width]).sum(axis=1, dtype=np.uint64)
