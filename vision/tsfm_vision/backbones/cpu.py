"""Exact operations of the backbones on a CPU that are faster or need less memory than PyTorch's.

In training, backward computes intermediate values again instead of keeping them. Each is a registered operator of
PyTorch with its plain arithmetic, which exported graphs, second derivatives, ``torch.vmap``, other devices and
float16 use.

Shapes: B batch, H and W rows and columns of a map, N tokens of a region, D channels of a head, C channels of a token,
X channels of queries, keys and values together, R regions, K regions that a region attends to.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import flop_registry, register_flop_formula, sdpa_flop

# Elements of keys, values and scores that are held at once.
GATHERED = 2**18

# PyTorch's counter does not know its own kernel for CPUs.
FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
if FUSED not in flop_registry:
    register_flop_formula(FUSED, get_raw=True)(sdpa_flop)


def applies(x: Tensor, low: bool = False) -> bool:
    """Whether these operations are used for a tensor.

    Args:
        x: the tensor.
        low: whether the operation also works in bfloat16 and under autocast.
    """
    if x.device.type != "cpu" or torch.compiler.is_exporting() or torch.jit.is_tracing() or is_transformed():
        return False
    if low and x.dtype == torch.bfloat16:
        return True
    return x.dtype in (torch.float32, torch.float64) and (low or not torch.is_autocast_enabled("cpu"))


def is_transformed() -> bool:
    """Whether ``torch.vmap`` or another transform of ``torch.func`` is at work, which knows plain operations alone."""
    return not torch.compiler.is_compiling() and torch._C._functorch.maybe_current_level() is not None


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type for sums: float32 or wider."""
    return torch.promote_types(dtype, torch.float32)


def register(
    name: str,
    plain: Callable[..., Tensor],
    forward: Callable[..., Tensor],
    backward: Callable[..., list[Tensor]],
    shape: Callable[..., Sequence[int]],
    wrt: int = 1,
    flops: Callable[..., int] = lambda *_: 0,
) -> Callable[..., Tensor]:
    """Register an operator ``tsfm::name`` and return it. All tensors come first among its arguments.

    Args:
        name: of the operator.
        plain: the same by PyTorch's operations.
        forward: what it computes, a new contiguous tensor of the first argument's type.
        backward: gradients for the first ``wrt`` arguments, contiguous, from the output's gradient and the arguments.
        shape: of the output, from the arguments.
        wrt: number of arguments that have gradients.
        flops: number of operations in products of a forward pass, from the shapes of tensors; backward has 2.5 times
            as many, as it computes the scores again.
    """
    operator: Any = torch.library.custom_op(f"tsfm::{name}", forward, mutates_args=())
    gradients: Any = torch.library.custom_op(f"tsfm::{name}_backward", backward, mutates_args=())

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        ctx.save_for_backward(*tensors)
        ctx.others = inputs[len(tensors) :]

    def differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        nothing = [None] * (len(inputs) - wrt + len(ctx.others))
        if not torch.is_grad_enabled():
            run = gradients if torch.compiler.is_compiling() else backward  # to call an operator takes its time
            return (*run(grad.contiguous(), *inputs, *ctx.others), *nothing)
        wanted = [x for x, needed in zip(inputs[:wrt], ctx.needs_input_grad, strict=False) if needed]
        found = iter(torch.autograd.grad(plain(*inputs, *ctx.others), wanted, grad, create_graph=True))
        return (*(next(found) if needed else None for needed in ctx.needs_input_grad[:wrt]), *nothing)

    operator.register_fake(lambda *given: given[0].new_empty(shape(*given)))
    gradients.register_fake(lambda _, *given: [x.new_empty(x.shape) for x in given[:wrt]])
    operator.register_autograd(differentiate, setup_context=keep)
    packets = torch.ops.tsfm
    register_flop_formula(getattr(packets, name))(lambda *given, **_: flops(*given))
    register_flop_formula(getattr(packets, f"{name}_backward"))(lambda _, *given, **__: 5 * flops(*given) // 2)
    return operator


def plain_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x / sqrt(mean(x ** 2) + eps) * weight`` over the last axis."""
    return F.rms_norm(x, (x.shape[-1],), weight.to(x.dtype), eps)


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """``1 / sqrt(mean(x ** 2) + eps)``."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide(x.dtype))
    return length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def rms_norm_forward(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``plain_rms_norm``."""
    with torch.autocast("cpu", enabled=False):  # in the types of the inputs
        return (x * inverse_rms(x, eps)).mul_(weight).to(x.dtype).contiguous()


def rms_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> list[Tensor]:
    """Gradients of ``plain_rms_norm``."""
    with torch.autocast("cpu", enabled=False):
        inverse = inverse_rms(x, eps)
        normed = x * inverse
        product = grad * normed
        mean = (product @ weight.to(product.dtype)).div_(x.shape[-1]).unsqueeze(-1)
        grad_x = (grad * weight.to(product.dtype)).addcmul_(normed, mean, value=-1).mul_(inverse)
        return [grad_x.to(x.dtype).contiguous(), product.flatten(0, -2).sum(0).to(weight.dtype)]


def plain_gated_silu(gate: Tensor, value: Tensor) -> Tensor:
    """``silu(gate) * value``."""
    return F.silu(gate) * value


def gated_silu_forward(gate: Tensor, value: Tensor) -> Tensor:
    """``plain_gated_silu``."""
    return F.silu(gate).mul_(value).contiguous()


def gated_silu_backward(grad: Tensor, gate: Tensor, value: Tensor) -> list[Tensor]:
    """Gradients of ``plain_gated_silu``."""
    return [torch.ops.aten.silu_backward(grad * value, gate).contiguous(), F.silu(gate).mul_(grad).contiguous()]


rms_norm = register("rms_norm", plain_rms_norm, rms_norm_forward, rms_norm_backward, lambda x, *_: x.shape, 2)
gated_silu = register("gated_silu", plain_gated_silu, gated_silu_forward, gated_silu_backward, lambda x, *_: x.shape, 2)


def plain_routed(qkv_BHWX: Tensor, index_BRK: Tensor, heads: int, rows: int, columns: int, scale: float) -> Tensor:
    """Attention of each region of a map to the regions that it is routed to, ``[B, H, W, C]``.

    The map holds queries, keys and values of all heads side by side; a region is ``rows`` x ``columns`` tokens.
    """
    sizes = (rows, columns, heads)
    q, k, v = table_of(qkv_BHWX, 3, sizes)
    chosen = rows_of(index_BRK, heads)
    weights = (q @ gathered(k, chosen).transpose(1, 2) * scale).softmax(-1)
    return map_of((weights @ gathered(v, chosen))[None], qkv_BHWX.shape, sizes)


def routed_forward(qkv_BHWX: Tensor, index_BRK: Tensor, heads: int, rows: int, columns: int, scale: float) -> Tensor:
    """``plain_routed``. Keys and values are gathered for some rows (one head of one region) at a time."""
    sizes, width = (rows, columns, heads), qkv_BHWX.shape[3] // 3
    k, v = table_of(qkv_BHWX[..., width:], 2, sizes)
    out = table_of(qkv_BHWX[..., :width], 1, sizes)[0]
    for part, chosen in chunks(index_BRK, heads, out):
        # A query is needed once: its output overwrites it.
        weights = routed_weights(out[part], gathered(k, chosen), scale)
        torch.bmm(weights, gathered(v, chosen), out=out[part])
    del k, v
    return map_of(out[None], qkv_BHWX.shape, sizes).contiguous()


def routed_backward(
    grad_BHWC: Tensor, qkv_BHWX: Tensor, index_BRK: Tensor, heads: int, rows: int, columns: int, scale: float
) -> list[Tensor]:
    """The gradient of ``plain_routed``."""
    sizes = (rows, columns, heads)
    (q, k, v), (grad,) = table_of(qkv_BHWX, 3, sizes), table_of(grad_BHWC, 1, sizes)
    total = q.new_zeros(3, *q.shape)
    for part, chosen in chunks(index_BRK, heads, q):
        keys = gathered(k, chosen)
        weights = routed_weights(q[part], keys, scale)
        scatter(total[2], chosen, torch.bmm(weights.transpose(1, 2), grad[part]))
        grad_weights = torch.bmm(grad[part], gathered(v, chosen).transpose(1, 2))
        inner = (grad_weights * weights).sum(-1, keepdim=True)
        weights.mul_(grad_weights.sub_(inner)).mul_(scale)
        torch.bmm(weights, keys, out=total[0][part])
        scatter(total[1], chosen, torch.bmm(weights.transpose(1, 2), q[part]))
    return [map_of(total, qkv_BHWX.shape, sizes).contiguous()]


def routed_flops(qkv: Sequence[int], index: Sequence[int], heads: int, rows: int, columns: int, scale: float) -> int:
    """Operations of the two products."""
    return 4 * math.prod(index) * (rows * columns) ** 2 * qkv[3] // 3


def table_of(map_BHWX: Tensor, kinds: int, sizes: tuple[int, int, int]) -> Float[Tensor, "kinds BRH N D"]:
    """The tokens of a map, copied region by region and head by head; ``kinds`` of queries, keys and values."""
    rows, columns, heads = sizes
    x = map_BHWX.unflatten(3, (kinds, heads, -1)).unflatten(2, (-1, columns)).unflatten(1, (-1, rows))
    x = x.permute(5, 0, 1, 3, 6, 2, 4, 7).clone(memory_format=torch.contiguous_format)
    return x.flatten(5, 6).flatten(1, 4)


def map_of(table: Float[Tensor, "kinds BRH N D"], shape: torch.Size, sizes: tuple[int, int, int]) -> Tensor:
    """The inverse of ``table_of``."""
    rows, columns, heads = sizes
    x = table.view(len(table), shape[0], shape[1] // rows, shape[2] // columns, heads, rows, columns, table.shape[-1])
    return x.permute(1, 2, 5, 3, 6, 0, 4, 7).flatten(5).flatten(3, 4).flatten(1, 2)


def chunks(index_BRK: Int[Tensor, "B R K"], heads: int, q: Float[Tensor, "BRH N D"]) -> list[tuple[slice, Tensor]]:
    """Slices of query rows that are computed at once, and the rows of keys and values that each row attends to."""
    size = max(1, GATHERED // (index_BRK.shape[2] * q.shape[1] * (2 * q.shape[2] + q.shape[1])))
    return [(slice(i * size, (i + 1) * size), part) for i, part in enumerate(rows_of(index_BRK, heads).split(size))]


def rows_of(index_BRK: Int[Tensor, "B R K"], heads: int) -> Int[Tensor, "BRH K"]:
    """The rows of keys and values that each row of queries attends to."""
    first = torch.arange(index_BRK.shape[0], device=index_BRK.device)[:, None, None] * index_BRK.shape[1]
    head = torch.arange(heads, device=index_BRK.device)[:, None]
    return ((index_BRK + first)[:, :, None] * heads + head).flatten(0, 2)


def gathered(x: Float[Tensor, "BRH N D"], chosen: Int[Tensor, "rows K"]) -> Float[Tensor, "rows KN D"]:
    """Keys or values of the chosen regions, concatenated."""
    return x.flatten(1).index_select(0, chosen.flatten()).view(len(chosen), chosen.shape[1] * x.shape[1], x.shape[2])


def scatter(total: Float[Tensor, "BRH N D"], chosen: Int[Tensor, "rows K"], x: Float[Tensor, "rows KN D"]) -> None:
    """Add the gradients of gathered rows to their regions: the backward pass of ``gathered``."""
    total.flatten(1).index_add_(0, chosen.flatten(), x.view(-1, total.shape[1] * total.shape[2]))


def routed_weights(q: Float[Tensor, "rows N D"], k: Float[Tensor, "rows KN D"], scale: float) -> Tensor:
    """Attention weights of some rows of queries."""
    weights = torch.bmm(q, k.transpose(1, 2)).mul_(scale)
    return torch.softmax(weights, -1, out=weights)


routed = register(
    "routed",
    plain_routed,
    routed_forward,
    routed_backward,
    lambda qkv, *_: (*qkv.shape[:3], qkv.shape[3] // 3),
    flops=routed_flops,
)
