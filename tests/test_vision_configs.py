"""Every image config builds a model with the published recipe; the compact models are of equal size."""

from pathlib import Path

import jsonargparse
import pytest
import pytorch_lightning as pl
import timm
import torch
import yaml

import tsfm_vision  # noqa: F401
from tsfm.configs import CONFIG_FOLDER
from tsfm_vision.training import ImageDataModule, ImageTask

FOLDER = CONFIG_FOLDER / "vision"
SINGLE = [path for path in sorted(FOLDER.glob("*.yaml")) if path.stem not in ("imagenet", "cifar10")]
# The published recipes: drop path, lr, its batch, warm-up epochs, mixup, cutmix, repeats, averaged weights.
PUBLISHED = {
    "poolformer_s12": (0.1, 1e-3, 1024, 5, 0.8, 1.0, 1, False),
    "poolformer_s24": (0.1, 1e-3, 1024, 5, 0.8, 1.0, 1, False),
    "poolformer_s36": (0.2, 1e-3, 1024, 5, 0.8, 1.0, 1, False),
    "poolformer_m36": (0.3, 1e-3, 1024, 5, 0.8, 1.0, 1, False),
    "poolformer_m48": (0.4, 1e-3, 1024, 5, 0.8, 1.0, 1, False),
    "tnt_s": (0.1, 1e-3, 1024, 5, 0.8, 1.0, 3, True),
    "tnt_b": (0.1, 1e-3, 1024, 5, 0.8, 1.0, 3, True),
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
    assert ("SoftMaskSchedule" in names) == path.stem.startswith("illama")
    assert (model.optim.weight_decay, data.augment.policy, data.augment.erase) == (0.05, "rand-m9-mstd0.5-inc1", 0.25)


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
