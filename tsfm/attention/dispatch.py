"""Scaled-dot-product attention on any device: the function ``attend`` with one ``Mask`` type for all kernels.

On CUDA it calls ``memory_efficient_attention`` of xformers or mslk with their attention-bias classes; if they have no
kernel, packed rows go to PyTorch's ``varlen_attn``. Everything else is computed by PyTorch's kernels for dense tensors.
All agree with the plain softmax of ``attend_reference``.

Shapes: ``B`` batch, ``N`` query tokens, ``M`` key tokens, ``H`` heads, ``D`` channels of a head.
"""

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from tsfm.attention.dropout import dropout as drop
from tsfm.attention.libraries import Library, load_library
from tsfm.attention.mask import Mask
from tsfm.attention.torch_kernels import layout, torch_attend
from tsfm.attention.varlen import takes, varlen_attend

__all__ = ["Mask", "attend", "attend_reference", "kernel_name", "xformers_bias"]

# All kernels on CUDA accept heads whose number of channels is a multiple of this.
ALIGNMENT = 8


def attend(
    q_BNHD: Float[Tensor, "B N H D"],
    k_BMHD: Float[Tensor, "B M H D"],
    v_BMHD: Float[Tensor, "B M H D"],
    mask: Mask | None = None,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "B N H D"]:
    """Scaled-dot-product attention: ``softmax(q k^T * scale + bias) v`` for each head.

    Args:
        q_BNHD: queries.
        k_BMHD: keys.
        v_BMHD: values.
        mask: which keys a query may see; by default all.
        scale: factor on the scores, by default ``1 / sqrt(D)``.
        dropout: share of attention weights set to 0; pass 0 outside training.

    Returns:
        The weighted means of the values, in the type of autocast if that is on; 0 for a query that sees no key.

    Raises:
        ValueError: the mask does not fit the tokens.
    """
    kind = q_BNHD.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        q_BNHD, k_BMHD, v_BMHD = (x.to(dtype) for x in (q_BNHD, k_BMHD, v_BMHD))
    b, n, m = q_BNHD.shape[0], q_BNHD.shape[1], k_BMHD.shape[1]
    if mask is not None:
        mask.check(b, n, m)
    scale = 1 / math.sqrt(q_BNHD.shape[-1]) if scale is None else scale
    return _choose(q_BNHD, k_BMHD, v_BMHD, mask, scale, dropout)[1]()


def attend_reference(
    q_BNHD: Float[Tensor, "B N H D"],
    k_BMHD: Float[Tensor, "B M H D"],
    v_BMHD: Float[Tensor, "B M H D"],
    mask: Mask | None = None,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "B N H D"]:
    """The same as ``attend`` by a plain softmax over all scores; the reference for tests of the kernels."""
    scale = 1 / math.sqrt(q_BNHD.shape[-1]) if scale is None else scale
    scores_BHNM = torch.einsum("bnhd,bmhd->bhnm", q_BNHD, k_BMHD) * scale
    bias = None if mask is None else mask.dense(q_BNHD.shape[1], k_BMHD.shape[1], q_BNHD)
    if bias is not None and bias.dtype == torch.bool:
        scores_BHNM = scores_BHNM.masked_fill(~bias, -math.inf)
    elif bias is not None:
        scores_BHNM = scores_BHNM + bias
    blind = (scores_BHNM == -math.inf).all(-1, keepdim=True)
    weights_BHNM = scores_BHNM.masked_fill(blind, 0).softmax(-1).masked_fill(blind, 0)
    return torch.einsum("bhnm,bmhd->bnhd", drop(weights_BHNM, dropout, training=True), v_BMHD)


class Translation(NamedTuple):
    """A mask in the form that xformers and mslk take.

    Attributes:
        bias: one of its bias classes, a tensor ``[B, H, N, M]``, or ``None``.
        is_flat: whether the rows must be concatenated to a batch of one.
        blind: True for queries that see no key and must give 0; broadcasts to ``[B, N, H, D]``.
    """

    bias: Any
    is_flat: bool = False
    blind: Tensor | None = None


def xformers_bias(library: Library, mask: Mask | None, q_BNHD: Tensor, k_BMHD: Tensor) -> Translation | None:
    """The mask as an attention bias of xformers or mslk; ``None`` if they have no class for it.

    Args:
        library: one of the two.
        mask: the mask, checked against the tokens.
        q_BNHD: queries, for their shape, type and device.
        k_BMHD: keys, for their shape.
    """
    if mask is None:
        return Translation(None)
    classes = library.fmha.attn_bias
    n, m = q_BNHD.shape[1], k_BMHD.shape[1]
    left, right = mask.reach
    if mask.bias is not None or (mask.is_segmented and mask.runs is None):
        return _tensor_bias(mask, q_BNHD, m)
    if mask.runs is not None:
        if left is not None and right != 0:
            return None
        blocks = _blocks(library, tuple(mask.runs.lengths.tolist()), right == 0, left, q_BNHD.device)
        pad = None if mask.segment_ids is None else (mask.segment_ids == 0).to(q_BNHD.device)
        return Translation(blocks, is_flat=True, blind=None if pad is None else pad[:, :, None, None])
    if left is not None and right is not None:
        return Translation(classes.LocalAttentionFromBottomRightMask(window_left=left, window_right=right))
    if mask.is_causal:
        return Translation(classes.LowerTriangularMask() if n == m else classes.LowerTriangularFromBottomRightMask())
    return Translation(None)


@lru_cache(maxsize=4)
def _blocks(library: Library, lengths: tuple[int, ...], is_causal: bool, left: int | None, device: torch.device) -> Any:
    """Segments as a bias class; cached, because every layer of a model needs the same."""
    blocks: Any = library.fmha.attn_bias.BlockDiagonalMask.from_seqlens(lengths, device=device)
    if is_causal:
        blocks = blocks.make_causal()
    return blocks if left is None else blocks.make_local_attention(left + 1)


def _tensor_bias(mask: Mask, q_BNHD: Tensor, m: int) -> Translation:
    (b, n, h, _), dtype = q_BNHD.shape, q_BNHD.dtype
    bias = mask.dense(n, m, q_BNHD)
    assert bias is not None
    if bias.dtype == torch.bool:
        bias = torch.zeros(bias.shape, dtype=dtype, device=bias.device).masked_fill(~bias, -math.inf)
    blind = (bias == -math.inf).all(-1, keepdim=True)
    # The kernels need rows that start at multiples of 8 elements: allocate longer rows and take a view of their start.
    # Padding also turns a parameter, which xformers would refuse by its type, into a plain tensor.
    rows = F.pad(bias.masked_fill(blind, 0), (0, -m % ALIGNMENT))[..., :m]
    return Translation(rows.expand(b, h, n, m), blind=blind.transpose(1, 2))


Chosen = tuple[str, Callable[[], Tensor]]  # the name of a kernel, and its call


def _choose(q: Tensor, k: Tensor, v: Tensor, mask: Mask | None, scale: float, dropout: float) -> Chosen:
    """The kernel for these arguments."""
    if q.device.type == "cuda":
        chosen = _of_library(q, k, v, mask, scale, dropout)
        if chosen is not None:
            return chosen
        if mask is not None and takes(q, mask, dropout):
            q_8, k_8, v_8 = _aligned(q, k, v)
            return "torch varlen", lambda: varlen_attend(q_8, k_8, v_8, mask, scale)[..., : q.shape[-1]]
    kernel = "cached dropout" if dropout > 0 and q.device.type == "cpu" else "torch SDPA"
    within = {"dense": "", "segments": ", by segment", "windows": ", by window"}
    name = f"{kernel}{within[layout(mask, q.shape[0], q.shape[1], k.shape[1])]}"
    return name, partial(torch_attend, q, k, v, mask, scale, dropout)


def _aligned(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Heads padded to the alignment; the zeros change neither the scores nor the channels that are returned."""
    return tuple(F.pad(x, (0, -x.shape[-1] % ALIGNMENT)) if x.shape[-1] % ALIGNMENT else x for x in tensors)


def _of_library(q: Tensor, k: Tensor, v: Tensor, mask: Mask | None, scale: float, dropout: float) -> Chosen | None:
    """A kernel of xformers or mslk; ``None`` if none of them accepts these arguments."""
    library, shape = load_library(), q.shape
    translation = None if library is None else xformers_bias(library, mask, q, k)
    if library is None or translation is None:
        return None
    fmha, (bias, is_flat, blind) = library.fmha, translation
    q, k, v = _aligned(q, k, v)
    if is_flat:
        q, k, v = (x.flatten(0, 1)[None] for x in (q, k, v))
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    inputs = fmha.Inputs(query=q, key=k, value=v, attn_bias=bias, p=dropout, scale=scale)

    def call(operators: Any) -> Tensor:
        out: Tensor = fmha.memory_efficient_attention(q, k, v, attn_bias=bias, p=dropout, scale=scale, op=operators)
        out = out.view(*shape[:3], -1)[..., : shape[-1]]
        return out if blind is None else out.masked_fill(blind, 0)

    for module in (fmha.flash3, fmha.flash, fmha.cutlass):
        # Check forward and backward now: a refusal in backward would come too late for another kernel. Check the type
        # first, because the checks of xformers fail for types that they do not know.
        if q.dtype not in module.FwOp.SUPPORTED_DTYPES:
            continue
        if not module.FwOp.not_supported_reasons(inputs) and not module.BwOp.not_supported_reasons(inputs):
            return f"{library.name} {module.FwOp.NAME}", partial(call, (module.FwOp, module.BwOp))
    return None


def kernel_name(
    q_BNHD: Float[Tensor, "B N H D"],
    k_BMHD: Float[Tensor, "B M H D"],
    v_BMHD: Float[Tensor, "B M H D"],
    mask: Mask | None = None,
    *,
    dropout: float = 0.0,
) -> str:
    """The name of the kernel that ``attend`` runs for these arguments, for ``tsfm doctor``."""
    return _choose(q_BNHD, k_BMHD, v_BMHD, mask, 1.0, dropout)[0]
