"""What timm users expect of a backbone, of every family registered here, on small images."""

import importlib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from tiny_backbones import SMALL, create, every, image
from torch import nn

import tsfm_vision  # noqa: F401  registers the models
from tsfm_data.errors import InputError
from tsfm_vision.backbones import checkpoints
from tsfm_vision.weights import load, save

PARAMETERS = {
    "tsfm_poolformer_s12": 11_915_176,
    "tsfm_poolformer_s24": 21_388_968,
    "tsfm_poolformer_s36": 30_862_760,
    "tsfm_poolformer_m36": 56_172_520,
    "tsfm_poolformer_m48": 73_473_448,
    "metaformer_id_s12": 11_915_176,
    "metaformer_pppf_s12_224": 11_919_978,
    "metaformer_ppff_s12_224": 12_150_474,
    "metaformer_pppa_s12_224": 14_038_440,
    "metaformer_ppaa_s12_224": 16_535_592,
    # The originals count a frozen table that nothing reads: 196 rows more.
    "tnt_ti_patch16_224": 6_114_040 - 196 * 192,
    "tsfm_tnt_s_patch16_224": 23_843_848 - 196 * 384,
    "tsfm_tnt_b_patch16_224": 65_554_120 - 196 * 640,
    "tsfm_tnt_s_legacy_patch16_224": 23_755_336,
    "ptnt_ti_patch16_192": 10_578_529,
    "ptnt_s_patch16_256": 31_953_200,
    "ptnt_m_patch16_256": 84_943_572,
    "ptnt_b_patch16_256": 156_990_072,
    "illama_tiny": 5_701_096,
    "illama_small": 22_018_024,
    "illama_base": 86_502_376,
    "illama_base_384": 86_794_216,
    "illama_large": 310_445_032,
    "illama_large_384": 310_834_152,
    "biformer_tiny": 13_142_760,
    "biformer_small": 25_536_232,
    "biformer_base": 56_804_968,
    "biformer_stl": 28_372_552,
    "biformer_stl_nchw": 28_372_552,
}


def registered() -> list[str]:
    """Every name that this package gave to timm."""
    return [name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith("tsfm_vision.")]


def family_of(name: str) -> str:
    """The module that registers a name."""
    return timm.model_entrypoint(name).__module__


@cache
def meta(name: str) -> nn.Module:
    """A model as published, without memory for its weights."""
    with torch.device("meta"):
        return timm.create_model(name)


def smallest() -> list[str]:
    """The registered name of fewest parameters of every family."""
    best: dict[str, str] = {}
    for name in registered():
        size = sum(p.numel() for p in meta(name).parameters())
        other = best.get(family_of(name))
        if other is None or size < sum(p.numel() for p in meta(other).parameters()):
            best[family_of(name)] = name
    return list(best.values())


@pytest.mark.slow
def test_when_imported_then_every_variant_is_registered_and_has_the_published_number_of_parameters() -> None:
    assert set(registered()) >= set(PARAMETERS)
    for name, expected in PARAMETERS.items():
        assert type(meta(name)).__module__.startswith("tsfm_vision."), name
        assert sum(p.numel() for p in meta(name).parameters()) == expected, name


@pytest.mark.parametrize("name", registered())
def test_when_a_name_is_registered_then_its_config_fits_the_model(name: str) -> None:
    model: Any = meta(name)
    cfg, state = model.default_cfg, model.state_dict()
    assert f"{cfg['classifier']}.weight" in state
    assert model.get_classifier() is model.get_submodule(cfg["classifier"])
    assert isinstance(model.get_submodule(cfg["first_conv"]), nn.Conv2d)
    assert model.num_classes == cfg["num_classes"] == len(state[f"{cfg['classifier']}.bias"])
    assert cfg["input_size"][0] == len(cfg["mean"]) == len(cfg["std"]) == 3
    assert set(model.no_weight_decay()) <= {key for key, _ in model.named_parameters()}
    sizes = [part["num_chs"] for part in model.feature_info]
    assert len(sizes) > 0
    assert sizes[-1] == model.num_features == model.head_hidden_size
    assert state[f"{cfg['classifier']}.weight"].shape[1] == model.head_hidden_size


@pytest.mark.parametrize("name", registered())
def test_when_a_name_is_registered_then_outputs_and_features_have_the_shapes_it_says(name: str) -> None:
    model: Any = meta(name)
    side = model.default_cfg["input_size"][1]
    x = torch.empty(1, 3, side, side, device="meta")
    assert model.eval()(x).shape == (1, model.num_classes)
    final, maps = model.forward_intermediates(x)
    assert final.shape == model.forward_features(x).shape
    for map_, part in zip(maps, model.feature_info, strict=True):
        assert map_.shape == (1, part["num_chs"], side // part["reduction"], side // part["reduction"])


@pytest.mark.parametrize("name", smallest())
def test_when_a_family_is_registered_then_its_smallest_model_classifies_and_learns(name: str) -> None:
    torch.manual_seed(0)
    model: Any = timm.create_model(name, num_classes=10)
    side = model.default_cfg["input_size"][1]
    out = model(image(side))
    assert out.shape == (2, 10)
    assert (out[0] - out[1]).abs().max() > 1e-6
    out.square().mean().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", smallest())
def test_when_a_family_is_registered_then_its_smallest_model_repeats_itself_from_a_file_and_as_a_graph(
    name: str, tmp_path: Path
) -> None:
    model: Any = timm.create_model(name, num_classes=10).eval()
    x = image(model.default_cfg["input_size"][1], batch=1)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    other = checkpoints.load_weights(timm.create_model(name, num_classes=10), tmp_path / "w.safetensors").eval()
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(other(x), expected)
        graph = torch.export.export(model, (x,), strict=False).module()
        assert torch.allclose(graph(x), expected, atol=1e-4)


def test_when_imported_then_timms_own_models_stay_timms() -> None:
    for name in ("poolformer_s12", "tnt_s_patch16_224"):
        assert timm.models.model_entrypoint(name).__module__.startswith("timm.models.")


@every
def test_when_an_image_is_given_then_logits_are_finite_and_depend_on_it(name: str) -> None:
    model = create(name)
    with torch.no_grad():
        out = model(image())
    assert out.shape == (2, 10)
    assert torch.isfinite(out).all()
    assert (out[0] - out[1]).abs().max() > 1e-6


@every
def test_when_trained_then_every_parameter_gets_a_gradient(name: str) -> None:
    model = create(name, drop_path_rate=0.1).train()
    model(image()).mean().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []


@every
def test_when_checkpointing_is_on_then_gradients_stay_the_same(name: str) -> None:
    grads = []
    for enable in (False, True):
        model = create(name).train()
        model.set_grad_checkpointing(enable)
        model(image()).square().sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.allclose(grads[0], grads[1], rtol=1e-4, atol=1e-5)


@every
def test_when_the_default_cfg_is_read_then_its_layers_exist_and_are_of_the_kind_it_says(name: str) -> None:
    model = create(name, num_classes=1000)
    cfg, state = model.default_cfg, model.state_dict()
    assert f"{cfg['classifier']}.weight" in state
    assert f"{cfg['first_conv']}.weight" in state
    assert model.get_classifier() is model.get_submodule(cfg["classifier"])
    assert isinstance(model.get_submodule(cfg["first_conv"]), nn.Conv2d)
    assert model.num_classes == 1000
    assert cfg["input_size"][0] == 3
    assert len(cfg["mean"]) == len(cfg["std"]) == 3


@every
def test_when_the_classifier_is_reset_then_pooled_or_whole_features_come_out(name: str) -> None:
    model, x = create(name), image()
    with torch.no_grad():
        features = model.forward_features(x)
        pre_logits = model.forward_head(features, pre_logits=True)
        assert pre_logits.shape == (2, model.head_hidden_size)
        assert model.num_features == model.head_hidden_size
        model.reset_classifier(0)
        assert torch.equal(model(x), pre_logits)
        assert create(name, num_classes=0)(x).shape == pre_logits.shape
        model.reset_classifier(0, "")
        assert model(x).shape == features.shape
        model.reset_classifier(7, "avg")
        assert model(x).shape == (2, 7)
        assert model.get_classifier().weight.shape[0] == 7


@every
def test_when_only_features_are_asked_for_then_they_fit_what_is_said_of_them(name: str) -> None:
    model = timm.create_model(name, features_only=True, **SMALL[name]).eval()
    with torch.no_grad():
        features = model(image(batch=1))
    channels, reductions = model.feature_info.channels(), model.feature_info.reduction()
    assert len(features) == len(channels) > 0
    for feature, count, reduction in zip(features, channels, reductions, strict=True):
        assert feature.shape == (1, count, 64 // reduction, 64 // reduction)
    last = timm.create_model(name, features_only=True, out_indices=(-1,), **SMALL[name]).eval()
    with torch.no_grad():
        assert len(last(image(batch=1))) == 1


@every
def test_when_intermediates_are_taken_then_the_last_is_what_the_features_are_made_of(name: str) -> None:
    model, x = create(name), image()
    with torch.no_grad():
        final, maps = model.forward_intermediates(x)
        assert len(maps) == len(model.feature_info)
        assert torch.allclose(final, model.forward_features(x), atol=1e-5)
        only = model.forward_intermediates(x, indices=[0, -1], intermediates_only=True)
        assert torch.equal(only[0], maps[0])
        assert torch.equal(only[1], maps[-1])
        early = model.forward_intermediates(x, indices=[0], stop_early=True, intermediates_only=True)
        assert torch.equal(early[0], maps[0])
        model.prune_intermediate_layers([1])
        pruned = model.forward_intermediates(x, indices=[1], intermediates_only=True)
        assert torch.equal(pruned[0], maps[1])


@every
def test_when_the_state_is_loaded_again_then_outputs_are_the_same(name: str, tmp_path: Path) -> None:
    first, x = create(name), image()
    torch.manual_seed(1)
    second = timm.create_model(name, num_classes=10, **SMALL[name]).eval()
    for file, store in (("w.safetensors", save_file), ("w.pth", lambda state, to: torch.save({"model": state}, to))):
        store(first.state_dict(), tmp_path / file)
        checkpoints.load_weights(second, tmp_path / file)
        with torch.no_grad():
            assert torch.equal(first(x), second(x))
    other = create(name, num_classes=3)
    checkpoints.load_weights(other, tmp_path / "w.safetensors")
    with torch.no_grad():
        assert torch.equal(other.forward_features(x), first.forward_features(x))


@every
def test_when_channels_differ_then_the_model_takes_them(name: str) -> None:
    with torch.no_grad():
        assert create(name, in_chans=1)(image(channels=1)).shape == (2, 10)


@every
def test_when_parameters_are_sorted_into_layers_then_every_block_is_a_layer_of_its_own(name: str) -> None:
    from timm.optim import create_optimizer_v2

    model = create(name)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.5)
    blocks = sum(1 for key, _ in model.named_modules() if key.split(".")[-2:-1] == ["blocks"])
    assert len({group["lr_scale"] for group in optimizer.param_groups}) >= blocks + 1
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    for skipped in model.no_weight_decay():
        parameter = dict(model.named_parameters())[skipped]
        group = next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
        assert group["weight_decay"] == 0


@every
def test_when_images_of_another_size_come_then_they_are_taken_or_refused_in_words(name: str) -> None:
    model = create(name)
    with torch.no_grad():
        if name == "metaformer_ppff_s12_224":
            with pytest.raises(InputError, match="create the model with the img_size of the images"):
                model(image(96))
        else:
            assert model(image(96, width=64)).shape == (2, 10)
            if name.startswith(("tsfm_poolformer", "biformer", "tsfm_tnt", "illama")):
                assert model(image(75, width=99)).shape == (2, 10)


@pytest.mark.parametrize("name", ["tsfm_tnt_s_patch16_224", "illama_tiny", "ptnt_ti_patch16_192"])
def test_when_the_input_size_is_set_then_outputs_are_those_of_resizing_at_every_pass(name: str) -> None:
    model, x = create(name), image(96, width=64)
    with torch.no_grad():
        expected = model(x)
        model.set_input_size((96, 64))
        assert torch.allclose(model(x), expected, atol=1e-6)
    if name == "illama_tiny":
        assert torch.equal(model.pos_embed[:, -1], create(name).pos_embed[:, -1])


@pytest.mark.parametrize("name", ["tsfm_tnt_s_patch16_224", "illama_tiny", "ptnt_ti_patch16_192"])
def test_when_a_model_for_images_that_are_not_square_is_saved_then_it_is_read_as_it_was_and_for_other_sizes(
    name: str, tmp_path: Path
) -> None:
    model: Any = create(name)
    model.set_input_size((96, 64))
    save(model, tmp_path / "model")
    source, x = f"local-dir:{tmp_path / 'model'}", image(96, width=64)
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(timm.create_model(source, pretrained=True).eval()(x), expected)
        assert torch.equal(load(tmp_path / "model")[0](x), expected)
        wide = timm.create_model(source, pretrained=True, img_size=(64, 128)).eval()
        assert torch.allclose(wide(image(64, width=128)), model(image(64, width=128)), atol=1e-5)


@pytest.mark.parametrize("name", [name for name in SMALL if name != "metaformer_ppff_s12_224"])
def test_when_a_checkpoint_is_of_another_image_size_then_its_position_tables_are_resized(
    name: str, tmp_path: Path
) -> None:
    torch.save(create(name).state_dict(), tmp_path / "w.pth")
    larger = checkpoints.load_weights(create(name, img_size=96), tmp_path / "w.pth").eval()
    with torch.no_grad():
        assert torch.allclose(larger(image(96)), create(name)(image(96)), atol=1e-5)


def family(name: str) -> str:
    if name.startswith("ptnt"):
        return "PyramidTNT"
    return {"p": "PoolFormer", "m": "PoolFormer", "t": "TNT", "i": "iLLaMA", "b": "BiFormer"}[
        name.removeprefix("tsfm_")[0]
    ]


def test_when_a_checkpoint_is_of_another_family_then_it_is_said_which_one(tmp_path: Path) -> None:
    models = {name: create(name) for name in SMALL}
    for name, model in models.items():
        module = importlib.import_module(type(model).__module__)
        for other, state in ((other, theirs.state_dict()) for other, theirs in models.items()):
            if family(name) == family(other):
                continue
            for wrapped in (state, {"model": state}, {"state_dict": {f"module.{k}": v for k, v in state.items()}}):
                message = f"expected a checkpoint of {family(name)}, found one of {family(other)}:"
                with pytest.raises(InputError, match=message):
                    module.checkpoint_filter_fn(wrapped, model)
    vit = timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=24, num_heads=1).state_dict()
    torch.save(vit, tmp_path / "vit.pth")
    with pytest.raises(InputError, match="expected a checkpoint of iLLaMA, found one of ViT"):
        checkpoints.load_weights(create("illama_tiny"), tmp_path / "vit.pth")


def test_when_a_checkpoint_is_no_good_then_it_is_refused_in_one_line(tmp_path: Path) -> None:
    model = create("illama_tiny")
    torch.save(model.state_dict(), tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:1000])
    (tmp_path / "cut.safetensors").write_bytes(b"\x00" * 20)
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    torch.save(create("illama_tiny", depth=3).state_dict(), tmp_path / "shallow.pth")
    for file, message in (
        ("cut.pth", "found a truncated one"),
        ("cut.safetensors", "found something else"),
        ("none.pth", "found none"),
        ("empty.pth", "expected a state dict"),
        ("shallow.pth", r"expected tensor blocks\.3\."),
    ):
        with pytest.raises(InputError, match=message) as caught:
            checkpoints.load_weights(model, tmp_path / file)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="a model of this package"):
        checkpoints.load_weights(nn.Linear(1, 1), tmp_path / "whole.pth")


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("illama_tiny", {"num_heads": 5}, "even number of channels"),
        ("illama_tiny", {"global_pool": "max"}, "global_pool"),
        ("biformer_tiny", {"n_win": 2}, "topk of at most 4"),
        ("biformer_tiny", {"topks": (1, 4, 16, -3)}, "topks of -2 or more"),
        ("biformer_tiny", {"kv_downsample_mode": "ada_avgpool"}, "kv_per_wins"),
        ("ptnt_ti_patch16_192", {"img_size": 60}, "multiples of 8"),
    ],
)
def test_when_sizes_do_not_fit_then_the_model_says_which(name: str, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create(name, **wrong)


@pytest.mark.parametrize("name", [name for name in SMALL if not name.startswith(("metaformer", "biformer_stl"))])
def test_when_exported_then_outputs_are_the_same(name: str) -> None:
    model, x = create(name), image()
    with torch.no_grad():
        exported = torch.export.export(model, (x,), strict=False).module()
        assert torch.allclose(exported(x), model(x), atol=1e-5)


@every
def test_when_run_in_bfloat16_then_outputs_stay_close(name: str) -> None:
    model, x = create(name), image()
    with torch.no_grad():
        expected = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x)
    assert (logits.float() - expected).abs().max() < 0.1 * max(1.0, float(expected.abs().max()))


def test_when_the_name_is_near_one_of_timms_then_the_pool_first_head_gives_timms_logits() -> None:
    theirs = timm.create_model("poolformer_s12", num_classes=10).eval()
    ours = timm.create_model("tsfm_poolformer_s12", num_classes=10, norm_first=False).eval()
    ours.load_state_dict(theirs.state_dict())
    tnt, our_tnt = (
        timm.create_model(prefix + "tnt_s_patch16_224", num_classes=10, depth=2, img_size=64).eval()
        for prefix in ("", "tsfm_")
    )
    our_tnt.load_state_dict(tnt.state_dict())
    with torch.no_grad():
        assert torch.allclose(ours(image()), theirs(image()), atol=1e-6)
        assert torch.allclose(our_tnt(image()), tnt(image()), atol=1e-5)
        with pytest.raises(InputError, match="at least 16 x 16"):
            our_tnt(image(8))


def test_when_dropout_of_attention_is_on_then_tnt_trains() -> None:
    model = create("tsfm_tnt_s_patch16_224", attn_drop_rate=0.2).train()
    model(image()).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
