"""Common corruptions of images (Hendrycks and Dietterich, ICLR 2019), in simple forms that scale with the image's side.

Shapes: B batch, C channels, H and W rows and columns of pixels, values from 0 to 1.
"""

import io
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import functional as vision

from tsfm_data.errors import InputError, unknown_name

SEVERITIES = (1, 2, 3, 4, 5)
Images = Float[Tensor, "B C H W"]


def noise(x: Images, level: float, generator: torch.Generator) -> Images:
    """Gaussian noise of this standard deviation."""
    return x + level * torch.randn(x.shape, generator=generator).to(x)


def blur(x: Images, level: float, generator: torch.Generator) -> Images:
    """A Gaussian blur whose width is this share of the shorter side."""
    sigma = level * min(x.shape[2:])
    side = 2 * min(max(1, round(3 * sigma)), min(x.shape[2:]) - 1) + 1
    return vision.gaussian_blur(x, [side, side], [sigma, sigma])


def contrast(x: Images, level: float, generator: torch.Generator) -> Images:
    """Values drawn towards their image's mean; ``level`` of the contrast is left."""
    mean = x.mean((2, 3), keepdim=True)
    return mean + level * (x - mean)


def brightness(x: Images, level: float, generator: torch.Generator) -> Images:
    """Everything brighter by ``level``."""
    return x + level


def pixelate(x: Images, level: float, generator: torch.Generator) -> Images:
    """Fewer pixels: each side has this share of them, enlarged again without smoothing."""
    size = [max(1, round(side * level)) for side in x.shape[2:]]
    return F.interpolate(F.interpolate(x, size, mode="area"), x.shape[2:], mode="nearest")


def jpeg(x: Images, level: float, generator: torch.Generator) -> Images:
    """Compressed as JPEG of this quality."""
    out = []
    for image in (x * 255).round().byte().cpu().permute(0, 2, 3, 1).numpy():
        stream = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(stream, "JPEG", quality=int(level))
        pixels = np.asarray(Image.open(stream))
        out.append(torch.from_numpy(pixels.reshape(image.shape).copy()).permute(2, 0, 1))
    return torch.stack(out).to(x) / 255


# What is done -> its level at each severity.
CORRUPTIONS: dict[str, tuple[Callable[[Images, float, torch.Generator], Images], tuple[float, ...]]] = {
    "noise": (noise, (0.04, 0.08, 0.12, 0.18, 0.26)),
    "blur": (blur, (0.012, 0.02, 0.03, 0.04, 0.06)),
    "contrast": (contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "brightness": (brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "jpeg": (jpeg, (50.0, 25.0, 15.0, 10.0, 7.0)),
    "pixelate": (pixelate, (0.8, 0.65, 0.5, 0.4, 0.3)),
}


def corrupt(x: Images, kind: str, severity: int, generator: torch.Generator) -> Images:
    """Corrupt a batch of images.

    Args:
        x: values 0 to 1.
        kind: a name in ``CORRUPTIONS``.
        severity: 1 (mild) to 5.
        generator: on the CPU; noise is drawn from it.

    Returns:
        Images of the same shape, values 0 to 1.

    Raises:
        InputError: an unknown kind, or another severity.
    """
    if kind not in CORRUPTIONS:
        raise unknown_name("corruption", kind, CORRUPTIONS)
    if severity not in SEVERITIES:
        raise InputError(f"expected a severity from 1 to {SEVERITIES[-1]}, found {severity}: change it")
    apply, levels = CORRUPTIONS[kind]
    return apply(x, levels[severity - 1], generator).clamp(0, 1)
