"""What an image model attends to: one map over each image, made in the way that its family allows.

Shapes: B batch, C channels, H and W rows and columns of the image, h and w those of a map, N tokens, K heads, D
channels of a head, R regions.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tsfm_data.errors import InputError
from tsfm_vision.backbones import TNT, BiFormer, ILlama, rotary_of, rotary_table


def look(model: nn.Module, x: Float[Tensor, "B C H W"]) -> tuple[str, Float[Tensor, "B H W"]]:
    """A title that says what the maps show, and the map of each image, from 0 to 1.

    TNT: rollout of the outer attention from the class token (Abnar and Zuidema, ACL 2020). iLLaMA: attention of the
    class token in the last block. BiFormer: how much all regions attend to each region, in the last routed stage. Other
    models, PoolFormer among them: Grad-CAM, the last map's channels weighted by the predicted class's gradient
    (Selvaraju et al., ICCV 2017).

    Args:
        model: in evaluation mode.
        x: normalised images.

    Raises:
        InputError: a model without maps.
    """
    if isinstance(model, TNT):
        title, maps = "outer attention, rolled out", tnt_rollout(model, x)
    elif isinstance(model, ILlama):
        title, maps = "attention of the class token", class_attention(model, x)
    elif isinstance(model, BiFormer) and (regions := routed(model, x)) is not None:
        title, maps = "regions that others attend to", regions
    else:
        title, maps = "gradient for the class, times activation", gradient_map(model, x)
    smooth = not isinstance(model, BiFormer)
    options: dict[str, Any] = {"mode": "bilinear", "align_corners": False} if smooth else {"mode": "nearest"}
    large = F.interpolate(maps[:, None].float(), x.shape[2:], **options)[:, 0]
    low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
    return title, (large - low) / (high - low).clamp_min(1e-12)


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


def routed(model: BiFormer, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B h w"] | None:
    """How much all regions attend to each one: mean over the last routed stage's blocks; None without routing."""
    routes = model.routes(x)
    if not routes:
        return None
    last = max(name.split(".")[1] for name in routes)
    votes = []
    for name, (share_BRK, index_BRK) in routes.items():
        if name.split(".")[1] == last:
            blank = torch.zeros(share_BRK.shape[:2], device=x.device, dtype=share_BRK.dtype)
            votes.append(blank.scatter_add(1, index_BRK.flatten(1), share_BRK.flatten(1)))
    mean_BR = torch.stack(votes).mean(0)
    side = math.isqrt(mean_BR.shape[1])
    if side * side != mean_BR.shape[1]:
        raise InputError(f"expected square images to draw regions on, found {x.shape[2]} x {x.shape[3]}: crop them")
    return mean_BR.unflatten(1, (side, side))


def region_routes(model: BiFormer, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B h w"] | None:
    """The regions that the middle region is routed to in the last routed stage, 1 for itself; None without routing."""
    routes = model.routes(x)
    if not routes:
        return None
    share_BRK, index_BRK = routes[max(routes)]
    side = math.isqrt(share_BRK.shape[1])
    middle = (side // 2) * side + side // 2
    out = torch.zeros(share_BRK.shape[:2], device=x.device).scatter(1, index_BRK[:, middle], 0.6)
    out[:, middle] = 1.0
    return out.unflatten(1, (side, side))


def gradient_map(model: nn.Module, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B h w"]:
    """Grad-CAM: channels of the last features weighted by the mean gradient of the predicted class's logit."""
    network: Any = model
    forward: Callable[..., Tensor] | None = getattr(network, "forward_features", None)
    if forward is None:
        raise InputError(f"expected a model with forward_features, found {type(model).__name__}: use one of timm's")
    kept: list[Tensor] = []

    def cut(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        kept.append(arguments[0].detach().requires_grad_())
        return (kept[0], *arguments[1:])

    # A classifier that reads one token alone has no gradient for the others after the last block: take its input.
    hook = network.blocks[-1].register_forward_pre_hook(cut) if hasattr(network, "blocks") else None
    with torch.enable_grad():
        features = forward(x)
        if hook is None:
            kept.append(features.detach().requires_grad_())
            features = kept[0]
        else:
            hook.remove()
        logits = network.forward_head(features)
        (gradient,) = torch.autograd.grad(logits.amax(1).sum(), kept[0])
    features = kept[0].detach()
    features, gradient = as_map(network, features, x), as_map(network, gradient, x)
    return (features * gradient.mean((2, 3), keepdim=True)).sum(1).relu().detach()


def as_map(model: Any, features: Tensor, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B c h w"]:
    """Features as a map: a transformer's patch tokens on their grid, without its prefix tokens."""
    if features.ndim == 4:
        return features
    prefix = getattr(model, "num_prefix_tokens", 1)
    patches = features[:, prefix:].transpose(1, 2)
    return patches.unflatten(2, model.patch_embed.dynamic_feat_size(tuple(x.shape[2:])))
