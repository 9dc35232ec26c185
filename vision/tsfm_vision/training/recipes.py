"""The parts of a training recipe: optimiser and schedule, mixing of images, augmentation. All from timm."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image
from timm.data import Mixup, auto_augment, create_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import MaybeToTensor
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch.optim import AdamW, Optimizer
from torchvision import transforms

from tsfm_data.errors import LIBRARY_ERRORS, InputError, reason_of
from tsfm_vision.evaluation import eval_transform


def posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    """timm's. Of 0 bits a black image is left, as older versions of Pillow gave; newer ones refuse to keep none."""
    return auto_augment.posterize(image, bits, **options) if bits > 0 else Image.new(image.mode, image.size)


auto_augment.NAME_TO_OP |= dict.fromkeys(("Posterize", "PosterizeOriginal", "PosterizeIncreasing"), posterize)


@dataclass(frozen=True)
class ImageOptim:
    """AdamW and a cosine with linear warm-up, by epochs.

    Attributes:
        lr: peak learning rate.
        lr_batch: images in a batch that ``lr`` is for; with another batch it, and nothing else, grows in proportion.
            null does not scale it.
        weight_decay: of matrices and convolutions; biases, norms and the model's ``no_weight_decay`` have none.
        betas: decay rates of the two moments.
        warmup_epochs: epochs of linear warm-up.
        warmup_lr: learning rate at the start of the warm-up.
        min_lr: learning rate at the end of the cosine.
        cooldown_epochs: last epochs at ``min_lr``.
        cosine_from: where the cosine begins: ``"start"``, so that the warm-up covers its first epochs (timm), or
            ``"peak"``, after the warm-up (iLLaMA's code).
        layer_decay: factor on the learning rate from each layer to the one below it; null has none.
    """

    lr: float = 1e-3
    lr_batch: int | None = None
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_epochs: int = 5
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5
    cooldown_epochs: int = 0
    cosine_from: Literal["start", "peak"] = "start"
    layer_decay: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.min_lr <= self.lr or not 0 <= self.warmup_lr <= self.lr or self.lr == 0:
            raise InputError(
                f"expected optim.lr above 0 and no lower than min_lr and warmup_lr, found lr {self.lr}, min_lr "
                f"{self.min_lr}, warmup_lr {self.warmup_lr}: change them"
            )
        if self.warmup_epochs < 0 or self.cooldown_epochs < 0 or self.weight_decay < 0:
            raise InputError("expected epochs and weight decay of 0 or more in optim, found a negative one: change it")
        if (
            not all(0 <= beta < 1 for beta in self.betas)
            or not 0 < (1 if self.layer_decay is None else self.layer_decay) <= 1
        ):
            raise InputError(
                f"expected optim.betas from 0 to below 1 and layer_decay above 0 and at most 1, found {self.betas} and "
                f"{self.layer_decay}: change them"
            )

    def peak(self, batch: int) -> float:
        """The peak learning rate for this many images in a batch."""
        return self.lr * (batch / self.lr_batch if self.lr_batch else 1)


@dataclass(frozen=True)
class Mix:
    """Mixing of the images and labels of a batch (timm's Mixup).

    Attributes:
        mixup: parameter of the Beta distribution of mixup's weights; 0 for no mixup.
        cutmix: the same for cutmix.
        prob: share of the batches that are mixed.
        switch_prob: share of cutmix if both are on.
        smoothing: label smoothing.
    """

    mixup: float = 0.8
    cutmix: float = 1.0
    prob: float = 1.0
    switch_prob: float = 0.5
    smoothing: float = 0.1

    def __post_init__(self) -> None:
        shares = (self.prob, self.switch_prob, self.smoothing)
        if self.mixup < 0 or self.cutmix < 0 or not all(0 <= share <= 1 for share in shares):
            raise InputError(
                "expected mixup and cutmix of 0 or more and shares from 0 to 1 in mix, found mixup "
                f"{self.mixup}, cutmix {self.cutmix}, prob {self.prob}, switch_prob {self.switch_prob}, smoothing "
                f"{self.smoothing}: change them"
            )

    def build(self, classes: int) -> Mixup | None:
        """timm's Mixup for this number of classes; None if nothing is mixed."""
        if not self.mixup and not self.cutmix:
            return None
        return Mixup(
            self.mixup,
            self.cutmix,
            None,
            self.prob,
            self.switch_prob,
            label_smoothing=self.smoothing,
            num_classes=classes,
        )


@dataclass(frozen=True)
class Augment:
    """Augmentation of a training image.

    Attributes:
        crop: ``"resized"``: a random part of the image, resized (ImageNet); ``"pad"``: resized and cropped as in
            evaluation, then moved by up to an eighth of its side (small images).
        scale: least and greatest share of the image's area for ``"resized"``.
        flip: probability of a horizontal flip.
        policy: timm's name of a RandAugment policy, or with ``"resized"`` also of another; null for none.
        jitter: strength of colour jitter if there is no policy, for ``"resized"``.
        erase: probability of a random rectangle of noise.
        repeats: repeated augmentation: how often an image comes in an epoch, each time with another augmentation,
            shared out among processes. The length of an epoch stays the same. 1 for none.
    """

    crop: Literal["resized", "pad"] = "resized"
    scale: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5
    policy: str | None = "rand-m9-mstd0.5-inc1"
    jitter: float = 0.4
    erase: float = 0.25
    repeats: int = 1

    def __post_init__(self) -> None:
        least, greatest = self.scale
        shares, counts = (self.flip, self.erase, least, greatest), (self.jitter, self.repeats - 1)
        if not all(0 <= share <= 1 for share in shares) or not 0 < least <= greatest or min(counts) < 0:
            raise InputError(
                "expected shares from 0 to 1, jitter of 0 or more and repeats of at least 1 in augment, found scale "
                f"{least} {greatest}, flip {self.flip}, erase {self.erase}, jitter {self.jitter}, repeats "
                f"{self.repeats}: change them"
            )
        like = {"input_size": (3, 8, 8), "mean": (0.5,) * 3, "std": (0.5,) * 3}
        try:
            self.build({**like, "interpolation": "bilinear", "crop_pct": 1.0})
        except LIBRARY_ERRORS as error:
            raise InputError(
                f"expected augment.policy of timm, such as rand-m9-mstd0.5-inc1, found {self.policy!r} "
                f"({reason_of(error)}): change it"
            ) from error

    def build(self, data_config: dict[str, Any]) -> Callable[..., Any]:
        """The transform of a training image for a model of this data config (timm's keys)."""
        size, mean, std = data_config["input_size"][1:], data_config["mean"], data_config["std"]
        if self.policy and len(mean) in (2, 4):
            raise InputError(
                f"expected augment.policy null for images with alpha, found {self.policy!r}: give "
                "--data.augment.policy null"
            )
        if self.crop == "resized":
            return create_transform(
                data_config["input_size"],
                is_training=True,
                scale=self.scale,
                hflip=self.flip,
                auto_augment=self.policy,
                color_jitter=self.jitter,
                re_prob=self.erase,
                re_mode="pixel",
                interpolation=data_config["interpolation"],
                mean=mean,
                std=std,
            )
        steps: list[Any] = [
            *eval_transform(data_config).transforms[:-2],  # without the conversion to a tensor
            transforms.RandomCrop(size, padding=max(1, size[0] // 8)),
            transforms.RandomHorizontalFlip(self.flip),
        ]
        if self.policy:
            fill = tuple(round(255 * value) for value in mean)
            options = {"translate_const": int(0.45 * min(size)), "img_mean": fill if len(fill) > 1 else fill[0]}
            steps.append(auto_augment.rand_augment_transform(self.policy, options))
        steps += [MaybeToTensor(), transforms.Normalize(mean, std)]
        if self.erase:
            steps.append(RandomErasing(self.erase, mode="pixel", device="cpu"))
        return transforms.Compose(steps)


def build_optimizer(config: ImageOptim, model: Any, batch: int) -> Optimizer:
    """AdamW over timm's parameter groups.

    Args:
        config: the recipe.
        model: with timm's ``no_weight_decay`` and ``group_matcher``, if it has them.
        batch: images in a batch, of all processes and accumulated batches together.
    """
    lr = config.peak(batch)
    keep = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    if config.layer_decay is None:
        groups = param_groups_weight_decay(model, config.weight_decay, no_weight_decay_list=keep)
    else:
        groups = param_groups_layer_decay(
            model, config.weight_decay, no_weight_decay_list=keep, layer_decay=config.layer_decay
        )
    for group in groups:
        group["lr"] = lr * group.pop("lr_scale", 1.0)
    return AdamW(groups, lr=lr, betas=config.betas)


def lr_factor(config: ImageOptim, steps_per_epoch: int, epochs: int, batch: int) -> Callable[[int], float]:
    """The factor on the peak learning rate at each optimiser step: warm-up, then a cosine.

    Args:
        config: the recipe.
        steps_per_epoch: optimiser steps in an epoch.
        epochs: epochs of the whole training, cool-down included.
        batch: images in a batch, as for ``build_optimizer``.
    """
    warm = config.warmup_epochs * steps_per_epoch
    begin = warm if config.cosine_from == "peak" else 0
    rise = max(1, warm - 1 if config.cosine_from == "peak" else warm)
    length = max(1, (epochs - config.cooldown_epochs) * steps_per_epoch - begin)
    first, last = (min(1.0, lr / config.peak(batch)) for lr in (config.warmup_lr, config.min_lr))

    def factor(step: int) -> float:
        if step < warm:
            return first + (1 - first) * step / rise
        return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - begin) / length)))

    return factor
