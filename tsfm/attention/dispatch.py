"""Scaled-dot-product attention on any device: the function ``attend`` with one ``Mask`` type for all kernels.

On CUDA it calls xformers' ``memory_efficient_attention`` with its attention-bias classes, elsewhere PyTorch; both agree
with the plain softmax of ``attend_reference``. No other module imports xformers, and this one does so only when it gets
the first CUDA tensor.

Shapes: ``B`` batch, ``N`` query tokens, ``M`` key tokens, ``H`` heads, ``D`` channels of a head.
"""

import ctypes
import importlib.util
import logging
import math
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from tsfm.attention.dropout import dropout as drop
from tsfm.attention.mask import Mask
from tsfm.attention.torch_kernels import layout, torch_attend

__all__ = ["Mask", "attend", "attend_reference", "kernel_name", "load_xformers", "xformers_bias", "xformers_problem"]

# All kernels of xformers accept heads whose number of channels is a multiple of this.
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
    if kind == "cuda":
        call = _prepare(q_BNHD, k_BMHD, v_BMHD, mask, scale, dropout)
        if call is not None:
            return _run(call, q_BNHD.shape)
    return torch_attend(q_BNHD, k_BMHD, v_BMHD, mask, scale, dropout)


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


@cache
def load_xformers() -> Any | None:
    """The module ``xformers.ops`` with its CUDA library loaded; ``None`` if it is not installed.

    xformers' wheel is linked to version 12 of the CUDA runtime, but recent PyTorch installs version 13. Without version
    12 every operator refuses CUDA tensors, so it is loaded here from the wheel ``nvidia-cuda-runtime-cu12``.
    """
    if importlib.util.find_spec("xformers") is None:
        return None
    nvidia = importlib.util.find_spec("nvidia")
    for folder in (nvidia.submodule_search_locations or []) if nvidia is not None else []:
        for library in Path(folder).glob("cuda_runtime/lib/libcudart.so.12*"):
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    # `tsfm doctor` reports problems with its library, and what to do about them.
    logging.getLogger("xformers").setLevel(logging.ERROR)
    try:
        import xformers.ops
    except (ImportError, OSError, RuntimeError) as error:
        logging.getLogger(__name__).warning("xformers is not used: %s (see `tsfm doctor`)", error)
        return None
    return xformers.ops


def xformers_problem() -> str | None:
    """The reason why xformers cannot run on CUDA tensors on this machine; ``None`` if it can."""
    if load_xformers() is None:
        return "it is not installed or does not import"
    from xformers import _cpp_lib

    problem = _cpp_lib._cpp_library_load_exception
    return None if problem is None else " ".join(str(problem).split())


class Translation(NamedTuple):
    """A mask in the form that xformers takes.

    Attributes:
        bias: one of its bias classes, a tensor ``[B, H, N, M]``, or ``None``.
        is_flat: whether the rows must be concatenated to a batch of one.
        blind: True for queries that see no key and must give 0; broadcasts to ``[B, N, H, D]``.
    """

    bias: Any
    is_flat: bool = False
    blind: Tensor | None = None


def xformers_bias(mask: Mask | None, q_BNHD: Tensor, k_BMHD: Tensor) -> Translation | None:
    """The mask as xformers' attention bias; ``None`` if xformers has no class for it.

    Args:
        mask: the mask, checked against the tokens.
        q_BNHD: queries, for their shape, type and device.
        k_BMHD: keys, for their shape.
    """
    if mask is None:
        return Translation(None)
    classes = load_xformers().fmha.attn_bias  # type: ignore[union-attr]
    n, m = q_BNHD.shape[1], k_BMHD.shape[1]
    left, right = mask.reach
    if mask.bias is not None or (mask.is_segmented and mask.runs is None):
        return _tensor_bias(mask, q_BNHD, m)
    if mask.runs is not None:
        if left is not None and right != 0:
            return None
        blocks = _blocks(tuple(mask.runs.lengths.tolist()), right == 0, left, q_BNHD.device)
        pad = None if mask.segment_ids is None else (mask.segment_ids == 0).to(q_BNHD.device)
        return Translation(blocks, is_flat=True, blind=None if pad is None else pad[:, :, None, None])
    if left is not None and right is not None:
        return Translation(classes.LocalAttentionFromBottomRightMask(window_left=left, window_right=right))
    if mask.is_causal:
        return Translation(classes.LowerTriangularMask() if n == m else classes.LowerTriangularFromBottomRightMask())
    return Translation(None)


@lru_cache(maxsize=4)
def _blocks(lengths: tuple[int, ...], is_causal: bool, left: int | None, device: torch.device) -> Any:
    """Segments as a bias class of xformers; cached, because every layer of a model needs the same."""
    classes = load_xformers().fmha.attn_bias  # type: ignore[union-attr]
    blocks: Any = classes.BlockDiagonalMask.from_seqlens(lengths, device=device)
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


class _Call(NamedTuple):
    name: str
    operators: Any
    inputs: Any
    translation: Translation


def _prepare(q: Tensor, k: Tensor, v: Tensor, mask: Mask | None, scale: float, dropout: float) -> _Call | None:
    """The call of xformers for these arguments; ``None`` if none of its kernels accepts them."""
    ops = load_xformers()
    translation = None if ops is None else xformers_bias(mask, q, k)
    if ops is None or translation is None:
        return None
    if q.shape[-1] % ALIGNMENT:
        # The added zeros change neither the scores nor the channels that are returned.
        q, k, v = (F.pad(x, (0, -x.shape[-1] % ALIGNMENT)) for x in (q, k, v))
    if translation.is_flat:
        q, k, v = (x.flatten(0, 1)[None] for x in (q, k, v))
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    inputs = ops.fmha.Inputs(query=q, key=k, value=v, attn_bias=translation.bias, p=dropout, scale=scale)
    for module in (ops.fmha.flash3, ops.fmha.flash, ops.fmha.cutlass):
        # Check forward and backward now: a refusal in backward would come too late for another kernel. Check the type
        # first, because the checks of xformers fail for types that they do not know.
        if q.dtype not in module.FwOp.SUPPORTED_DTYPES:
            continue
        if not module.FwOp.not_supported_reasons(inputs) and not module.BwOp.not_supported_reasons(inputs):
            return _Call(module.FwOp.NAME, (module.FwOp, module.BwOp), inputs, translation)
    return None


def _run(call: _Call, shape: torch.Size) -> Tensor:
    ops, x = load_xformers(), call.inputs
    assert ops is not None
    out: Tensor = ops.memory_efficient_attention(
        x.query, x.key, x.value, attn_bias=x.attn_bias, p=x.p, scale=x.scale, op=call.operators
    )
    out = out.view(*shape[:3], -1)[..., : shape[-1]]
    return out if call.translation.blind is None else out.masked_fill(call.translation.blind, 0)


def kernel_name(
    q_BNHD: Float[Tensor, "B N H D"],
    k_BMHD: Float[Tensor, "B M H D"],
    v_BMHD: Float[Tensor, "B M H D"],
    mask: Mask | None = None,
    *,
    dropout: float = 0.0,
) -> str:
    """The name of the kernel that ``attend`` runs for these arguments, for ``tsfm doctor``."""
    if q_BNHD.device.type == "cuda":
        call = _prepare(q_BNHD, k_BMHD, v_BMHD, mask, 1.0, dropout)
        if call is not None:
            return f"xformers {call.name}"
    kernel_layout = layout(mask, q_BNHD.shape[0], q_BNHD.shape[1], k_BMHD.shape[1])
    kernel = "cached dropout" if dropout > 0 and q_BNHD.device.type == "cpu" else "torch SDPA"
    return {"dense": kernel, "segments": f"{kernel}, by segment", "windows": f"{kernel}, by window"}[kernel_layout]
