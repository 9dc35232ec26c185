"""What an image model attends to: one map over each image, made in the way that its family allows.

Shapes: B batch, C channels, H and W rows and columns of the image, h and w those of a map, N tokens, K heads, D
channels of a head, R regions.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tsfm_data.errors import LIBRARY_ERRORS, InputError, reason_of
from tsfm_vision.backbones import TNT, BiFormer, ILlama, rotary_of, rotary_table

# Rows and columns of the coarsest map that Grad-CAM draws.
LEAST = 3


def look(model: nn.Module, x: Float[Tensor, "B C H W"]) -> dict[str, Float[Tensor, "B H W"]]:
    """Titles that say what is shown, each with a map of every image, from 0 to 1.

    TNT: rollout of the outer attention from the class token (Abnar and Zuidema, ACL 2020). iLLaMA: attention of the
    class token in the last block. BiFormer: in the last routed block, the weights by which all regions are routed to
    each region, and those of the middle region's routes. Other models: Grad-CAM (Selvaraju et al., ICCV 2017), the
    channels of the last map weighted by the gradient of the predicted class.

    Args:
        model: in evaluation mode.
        x: normalised images.

    Raises:
        InputError: a model without maps.
    """
    maps: dict[str, Tensor] = {}
    if isinstance(model, TNT):
        maps["outer attention, rolled out"] = tnt_rollout(model, x)
    elif isinstance(model, ILlama):
        maps["attention of the class token"] = class_attention(model, x)
    elif isinstance(model, BiFormer) and (regions := routed(model, x)) is not None:
        maps["routes of all regions"], maps["routes of the middle region"] = regions
    else:
        maps["gradient for the class, times activation"] = gradient_map(model, x)
    sharp = len(maps) > 1  # regions have borders
    options: dict[str, Any] = {"mode": "nearest"} if sharp else {"mode": "bilinear", "align_corners": False}
    for title, small in maps.items():
        large = F.interpolate(small[:, None].float(), x.shape[2:], **options)[:, 0]
        low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
        maps[title] = (large - low) / (high - low).clamp_min(1e-12)
    return maps


def inputs_of(model: nn.Module, modules: list[nn.Module], x: Float[Tensor, "B C H W"]) -> list[Tensor]:
    """The first input of each of the modules in a forward pass of the images."""
    inputs: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        inputs[module] = arguments[0]

    hooks = [module.register_forward_pre_hook(keep) for module in modules]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return [inputs[module] for module in modules]


@torch.no_grad()
def tnt_rollout(model: TNT, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B h w"]:
    """Attention rollout: how much of each patch reaches the class token, with half of each block as the residual."""
    attentions: list[Any] = [block.attn_out for block in model.blocks]  # type: ignore[union-attr]
    flow = None
    for attention, tokens in zip(attentions, inputs_of(model, attentions, x), strict=True):
        q, k = attention.qk(tokens).unflatten(2, (2, attention.num_heads, -1)).unbind(2)
        weights = (torch.einsum("bnkd,bmkd->bknm", q, k) * attention.scale).softmax(-1).mean(1)
        step = (weights + torch.eye(weights.shape[1], device=weights.device)) / 2
        flow = step if flow is None else step @ flow
    if flow is None:
        raise InputError("expected a TNT of at least one block, found none: create another")
    return flow[:, 0, 1:].unflatten(1, model.grid(x.shape[2], x.shape[3]))


@torch.no_grad()
def class_attention(model: ILlama, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B h w"]:
    """Weights of the patches for the class token, which is the last and sees all of them; mean over heads."""
    attention: Any = model.blocks[-1].attn
    (tokens,) = inputs_of(model, [attention], x)
    q, k, _ = attention.qkv(tokens).unflatten(2, (3, attention.heads, -1)).unbind(2)
    rotary = rotary_of(rotary_table(tokens.shape[1], model.head_channels, tokens))
    q, k = rotary.rotate(q)[:, -1], rotary.rotate(k)
    weights = (torch.einsum("bkd,bmkd->bkm", q, k) / math.sqrt(model.head_channels)).softmax(-1).mean(1)
    return weights[:, :-1].unflatten(1, model.grid(x.shape[2], x.shape[3]))


def routed(
    model: BiFormer, x: Float[Tensor, "B C H W"]
) -> tuple[Float[Tensor, "B h w"], Float[Tensor, "B h w"]] | None:
    """Weights of the routes of the last routed block, for each region that they lead to.

    Returns:
        Their mean over the regions that they begin at, and those of the middle region; None without routing.

    Raises:
        InputError: the regions are not as many in each direction.
    """
    routes = list(model.routes(x).values())
    if not routes:
        return None
    share_BRK, index_BRK = routes[-1]
    count = share_BRK.shape[1]
    side = math.isqrt(count)
    if side * side != count:
        raise InputError(f"expected square images to draw regions on, found {x.shape[2]} x {x.shape[3]}: crop them")
    weights_BRR = share_BRK.new_zeros(len(x), count, count).scatter(2, index_BRK, share_BRK)
    middle = (side // 2) * side + side // 2
    return weights_BRR.mean(1).unflatten(1, (side, side)), weights_BRR[:, middle].unflatten(1, (side, side))


def gradient_map(model: nn.Module, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B h w"]:
    """Grad-CAM: channels of a map weighted by their mean gradient of the predicted class's logit.

    The map is the last of some rows and columns whose gradient is not 0 everywhere: a classifier that reads the class
    token alone has none for patches after the last block. How features lie in the map is left to the model: its
    ``forward_intermediates`` arranges them, and then their gradients in their place.

    Raises:
        InputError: a model without such a map.
    """
    network: Any = model
    try:
        for level in reversed(range(len(network.feature_info))):
            activation, gradient = arranged(network, x, level)
            if min(activation.shape[2:]) >= LEAST and bool(gradient.any()):
                return (activation * gradient.mean((2, 3), keepdim=True)).sum(1).relu()
        reason = f"none of {LEAST} rows and columns with a gradient"
    except LIBRARY_ERRORS as error:
        reason = reason_of(error, 80)
    raise InputError(
        f"expected a model with maps that timm's forward_intermediates gives, found {type(model).__name__} ({reason}): "
        "give another"
    )


def arranged(
    network: Any, x: Float[Tensor, "B C H W"], level: int
) -> tuple[Float[Tensor, "B c h w"], Float[Tensor, "B c h w"]]:
    """The map of a level and its gradient of the predicted class's logit."""
    module = network.get_submodule(network.feature_info[level]["module"])
    kept: list[Any] = []

    def run(replacement: Callable[[Any], Any], forward: Callable[[], Any]) -> Any:
        hook = module.register_forward_hook(lambda _, __, output: replacement(output))
        try:
            return forward()
        finally:
            hook.remove()

    def cut(output: Any) -> Any:
        parts = [output] if isinstance(output, Tensor) else list(output)
        kept[:] = [part.detach().requires_grad_() for part in parts]
        return kept[0] if isinstance(output, Tensor) else type(output)(kept)

    with torch.enable_grad():
        logits = run(cut, lambda: network(x))
        found = torch.autograd.grad(logits.amax(1).sum(), kept, allow_unused=True)
    gradients = [torch.zeros_like(a) if b is None else b for a, b in zip(kept, found, strict=True)]

    def map_of(parts: Sequence[Tensor]) -> Tensor:
        def swap(output: Any) -> Any:
            return parts[0] if isinstance(output, Tensor) else type(output)(parts)

        options = {"indices": [level], "stop_early": True, "intermediates_only": True}
        (out,) = run(swap, lambda: network.forward_intermediates(x, **options))
        return out

    with torch.no_grad():
        return map_of([part.detach() for part in kept]), map_of(gradients)
