"""Every image config builds a model with the published recipe; the compact models are of equal size."""

from pathlib import Path

import jsonargparse
import pytest
import pytorch_lightning as pl
import timm
import torch
import yaml
from PIL import Image
from timm.data import auto_augment

import tsfm_vision  # noqa: F401
from tsfm.configs import CONFIG_FOLDER
from tsfm_data.images import open_images
from tsfm_vision.evaluation import Transformed
from tsfm_vision.training import Augment, ImageDataModule, ImageOptim, ImageTask, lr_factor
from tsfm_vision.weights import create, data_config

FOLDER = CONFIG_FOLDER / "vision"
OTHERS = ("imagenet", "cifar10", "segmentation", "detection", "sales")  # bases of others, and no classifiers
SINGLE = [path for path in sorted(FOLDER.glob("*.yaml")) if path.stem not in OTHERS]
# The published recipes: drop path, lr, its batch, warm-up epochs, mixup, cutmix, repeats, averaged weights.
PUBLISHED = {
    "poolformer_s12": (0.1, 1e-3, 1024, 5, 0.8, 1.0, 1, False),
    "poolformer_s24": (0.1, 1e-3, 1024, 5, 0.8, 1.0, 1, False),
    "poolformer_s36": (0.2, 1e-3, 1024, 5, 0.8, 1.0, 1, False),
    "poolformer_m36": (0.3, 1e-3, 1024, 5, 0.8, 1.0, 1, False),
    "poolformer_m48": (0.4, 1e-3, 1024, 5, 0.8, 1.0, 1, False),
    "tnt_s": (0.1, 1e-3, 1024, 5, 0.8, 1.0, 3, True),
    "tnt_b": (0.1, 1e-3, 1024, 5, 0.8, 1.0, 3, True),
    "tnt_ti": (0.1, 1e-3, 1024, 5, 0.8, 1.0, 3, True),
    "ptnt_s": (0.1, 1e-3, 1024, 20, 0.8, 1.0, 3, True),
    "illama_base_384": (0.8, 8e-5, 512, 0, 0.0, 0.0, 1, False),
    "illama_base_in21k": (0.1, 1e-3, 4096, 5, 0.8, 1.0, 1, False),
    "illama_tiny": (0.0, 4e-3, 4096, 5, 0.1, 0.1, 1, False),
    "illama_small": (0.1, 4e-3, 4096, 5, 0.5, 0.5, 1, False),
    "illama_base": (0.4, 4e-3, 4096, 50, 0.95, 1.0, 1, False),
    "biformer_tiny": (0.1, 5e-4, 512, 5, 0.8, 1.0, 3, True),
    "biformer_small": (0.15, 5e-4, 512, 5, 0.8, 1.0, 3, True),
    "biformer_base": (0.1, 5e-4, 512, 5, 0.8, 1.0, 3, True),
    "biformer_stl": (0.1, 5e-4, 512, 5, 0.8, 1.0, 3, True),
}


def parse(path: Path) -> tuple[jsonargparse.ArgumentParser, jsonargparse.Namespace]:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--seed_everything", type=int)
    parser.add_subclass_arguments(pl.LightningModule, "model")
    parser.add_subclass_arguments(pl.LightningDataModule, "data")
    parser.add_class_arguments(pl.Trainer, "trainer", instantiate=False)
    base = FOLDER / ("cifar10.yaml" if path.stem.startswith("cifar10") else "imagenet.yaml")
    return parser, parser.parse_args([f"--config={base}", f"--config={path}"])


@pytest.mark.parametrize("path", SINGLE, ids=lambda p: p.stem)
def test_when_an_image_config_is_parsed_then_its_recipe_is_the_stated_one(path: Path) -> None:
    _, config = parse(path)
    model, data = config.model.init_args, config.data.init_args
    assert timm.is_model(model.model)
    names = [callback.class_path.split(".")[-1] for callback in config.trainer.callbacks]
    assert names[:3] == ["ModelCheckpoint", "ModelCheckpoint", "ImageModelFolder"]
    if path.stem.startswith("cifar10_"):
        assert (data.source, config.trainer.max_epochs, model.optim.lr, data.batch_size) == ("cifar10", 5, 2e-3, 128)
        return
    sizes = (
        model.model_args["drop_path_rate"],
        model.optim.lr,
        model.optim.lr_batch,
        model.optim.warmup_epochs,
        model.mix.mixup,
        model.mix.cutmix,
        data.augment.repeats,
        "EMAWeightAveraging" in names,
    )
    assert sizes == PUBLISHED[path.stem]
    assert ("SoftMaskSchedule" in names) == (path.stem.startswith("illama") and path.stem != "illama_base_384")
    assert (data.augment.policy, data.augment.erase) == ("rand-m9-mstd0.5-inc1", 0.25)
    decay = {"illama_base_384": 1e-8, "illama_base_in21k": 0.01}.get(path.stem, 0.05)
    assert model.optim.weight_decay == decay


@pytest.mark.slow
def test_when_images_are_augmented_as_every_config_says_then_all_become_finite_pixels(data_folder: Path) -> None:
    images = open_images(data_folder / "images/flowers5_128.parquet")["train"]
    tried: set[str] = set()
    for path in SINGLE:
        _, config = parse(path)
        model, augment = config.model.init_args, Augment(**config.data.init_args.augment.as_dict())
        with torch.device("meta"):
            net = create(model.model, 2, model.img_size, 3, model.model_args or {}, model.preprocessing or {})
        preprocessing = data_config(net)
        if str((augment.build(preprocessing), preprocessing)) in tried:
            continue
        tried.add(str((augment.build(preprocessing), preprocessing)))
        data = Transformed(images, augment.build(preprocessing))
        for index in range(150):
            x, _ = data[(0, index, index)]
            assert x.shape == preprocessing["input_size"]
            assert x.isfinite().all()
    assert len(tried) >= 4  # at 64, 224, 256 and 384 pixels


@pytest.mark.parametrize("name", ["Posterize", "PosterizeOriginal", "PosterizeIncreasing"])
def test_when_posterize_keeps_no_bits_then_the_image_is_black_as_when_the_recipes_were_published(name: str) -> None:
    image = Image.new("RGB", (4, 4), (200, 100, 50))
    operation = auto_augment.AugmentOp(name, prob=1.0)
    operation.level_fn = lambda level, options: (0,)
    assert operation(image).getextrema() == ((0, 0),) * 3
    operation.level_fn = lambda level, options: (1,)
    assert operation(image).getextrema() == ((128, 128), (0, 0), (0, 0))


# Mean learning rate of an epoch in the published logs: epochs in all, images, epoch, rate.
LOGGED = {
    "illama_base": [(300, 1_281_167, 0, 3.987435091993077e-05), (300, 1_281_167, 43, 0.003480094877876787)],
    "illama_base_384": [(30, 1_281_167, 0, 7.992788848282348e-05), (30, 1_281_167, 29, 1.0721980020418422e-06)],
    "illama_base_in21k": [(90, 11_060_223, 0, 9.997036817541856e-05), (90, 11_060_223, 44, 0.0005557712663389206)],
}


@pytest.mark.parametrize("name", LOGGED)
def test_when_an_illama_is_trained_then_its_learning_rates_are_those_of_the_published_logs(name: str) -> None:
    _, config = parse(FOLDER / f"{name}.yaml")
    optim = ImageOptim(**config.model.init_args.optim.as_dict())
    for epochs, images, epoch, expected in LOGGED[name]:
        assert config.trainer.max_epochs == epochs
        steps = images // int(optim.lr_batch or 1)
        factor = lr_factor(optim, steps, epochs, int(optim.lr_batch or 1))
        rates = [optim.lr * factor(step) for step in range(epoch * steps, (epoch + 1) * steps)]
        assert sum(rates) / steps == pytest.approx(expected, rel=1e-6)


def test_when_a_batch_is_twice_as_large_then_only_the_peak_grows() -> None:
    optim = ImageOptim(lr=5e-4, lr_batch=512, warmup_lr=1e-6, min_lr=1e-5)
    factor, peak = lr_factor(optim, 100, 300, 1024), optim.peak(1024)
    assert peak == 1e-3
    assert peak * factor(0) == pytest.approx(1e-6)
    assert peak * factor(100 * 300) == pytest.approx(1e-5)


@pytest.mark.parametrize("path", [p for p in SINGLE if p.stem.startswith("cifar10_")], ids=lambda p: p.stem)
def test_when_a_compact_model_is_made_then_it_has_about_0_7_million_parameters(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    parser, config = parse(path)
    made = parser.instantiate_classes(config)
    assert isinstance(made.model, ImageTask)
    assert isinstance(made.data, ImageDataModule)
    count = sum(parameter.numel() for parameter in made.model.net.parameters())
    assert 0.64e6 < count < 0.76e6
    assert made.model.net.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 10)


def test_when_all_configs_are_counted_then_each_published_recipe_has_one() -> None:
    assert {path.stem for path in SINGLE if not path.stem.startswith("cifar10")} == set(PUBLISHED)
    assert yaml.safe_load((FOLDER / "imagenet.yaml").read_text())["trainer"]["max_epochs"] == 300
