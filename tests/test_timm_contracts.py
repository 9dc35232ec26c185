"""What timm's users rely on beyond a forward pass: features by every class, dense weights, names of weights."""

import hashlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import _builder, _features, _hub, _input, _registry, metaformer, tnt
from tiny_backbones import SMALL, create, every, image
from torch import Tensor

from tsfm.weights import registry
from tsfm_data.errors import InputError
from tsfm_vision.backbones import checkpoints

# "fx" works for these too: ``test_timm_verbs.py``, in a process without type checks, which a trace cannot pass.
WORKS = {"PoolFormer": ("list", "dict", "hook"), "BiFormer": ("hook",)}


def features_of(name: str, **options: Any) -> tuple[Any, Any]:
    """The same weights with ``features_only`` by another class."""
    torch.manual_seed(0)
    return timm.create_model(name, features_only=True, **{**SMALL[name], **options}).eval(), image(batch=1)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name in SMALL
        for kind in ("list", "dict", "hook", "fx")
        if kind != "fx" or not name.startswith(("tsfm_pool", "metaformer", "biformer"))
    ],
)
def test_when_features_are_asked_of_another_class_then_they_are_the_same_or_it_is_refused(name: str, kind: str) -> None:
    if kind not in WORKS.get(type(create(name)).__name__, ()):
        with pytest.raises(InputError, match=f"expected feature_cls of {name} to be getter.*, found '{kind}'"):
            features_of(name, feature_cls=kind)
        return
    net, x = features_of(name)
    other, _ = features_of(name, feature_cls=kind)
    with torch.no_grad():
        expected, found = net(x), other(x)
    assert other.feature_info.channels() == net.feature_info.channels()
    found = list(found.values()) if kind == "dict" else found
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))


@every
def test_when_checkpointing_is_switched_on_under_features_only_then_gradients_stay_the_same(name: str) -> None:
    grads = []
    for enable in (False, True):
        net, x = features_of(name)
        net.train().set_grad_checkpointing(enable)
        sum((map_.square().mean() for map_ in net(x)), torch.zeros(())).backward()
        grads.append([p.grad for p in net.parameters() if p.grad is not None])
    assert len(grads[0]) == len(grads[1]) > 0
    assert all(torch.allclose(one, two, rtol=1e-4, atol=1e-5) for one, two in zip(*grads, strict=True))


@every
def test_when_intermediates_are_asked_by_other_names_then_they_are_the_same(name: str) -> None:
    model, x = create(name), image()
    with torch.no_grad():
        final, maps = model.forward_intermediates(x, norm=True)
        named = model.forward_intermediates(x, norm=True, output_dict=True)
        assert torch.equal(named["image_features"], final)
        assert all(torch.equal(a, b) for a, b in zip(named["image_intermediates"], maps, strict=True))
        (last,) = model.get_intermediate_layers(x, 1, reshape=True, norm=True)
        assert torch.equal(last, maps[-1])
        if "NLC" in model.formats:
            ((tokens, prefix),) = model.get_intermediate_layers(x, [0], return_prefix_tokens=True, norm=True)
            assert torch.equal(tokens, maps[0].flatten(2).transpose(1, 2))
            assert prefix.shape[1] == (model.parts == "blocks")
        with pytest.raises(InputError, match="expected output_fmt NCHW"):
            model.forward_intermediates(x, output_fmt="NHWC")


def original_names(state: dict[str, Tensor], stages: int) -> dict[str, Tensor]:
    """A PoolFormer's weights under the names of its original."""
    out = {}
    for key, value in state.items():
        for stage in range(stages):
            key = key.replace(f"stages.{stage}.blocks", f"network.{2 * stage}")
            key = key.replace(f"stages.{stage}.downsample.conv", f"network.{2 * stage - 1}.proj")
            key = key.replace(f"stage_norms.{stage}.", f"norm{2 * stage}.")
        for number in "12":
            key = key.replace(f"layer_scale{number}.scale", f"layer_scale_{number}")
        key = key.replace("head.fc.", "head.").replace("head.norm.", "norm.").replace("stem.conv", "patch_embed.proj")
        out[key] = value
    return out


def test_when_a_dense_poolformer_is_made_then_it_takes_the_weights_of_a_segmenter_and_of_a_classifier(
    tmp_path: Path,
) -> None:
    name, file = "tsfm_poolformer_s12", tmp_path / "w.pth"
    dense = create(name, stage_norms=True)
    for norm in dense.stage_norms:
        torch.nn.init.normal_(norm.weight)
    whole = {f"backbone.{key}": value for key, value in original_names(dense.state_dict(), 4).items()}
    torch.save({"state_dict": {**whole, "decode_head.weight": torch.zeros(3)}}, file)
    x = image()
    with torch.no_grad():
        expected = dense.forward_intermediates(x, norm=True, intermediates_only=True)
        loaded = checkpoints.load_weights(create(name, stage_norms=True, drop_path_rate=0.1), file).eval()
        for a, b in zip(loaded.forward_intermediates(x, norm=True, intermediates_only=True), expected, strict=True):
            assert torch.equal(a, b)
        classifier = create(name)
        torch.save(original_names(classifier.state_dict(), 4), file)
        torch.manual_seed(5)
        fresh = timm.create_model(name, **SMALL[name], stage_norms=True).eval()
        maps = checkpoints.load_weights(fresh, file).forward_intermediates(x, intermediates_only=True)
        for a, b in zip(maps, classifier.forward_intermediates(x, intermediates_only=True), strict=True):
            assert torch.equal(a, b)


def test_when_the_sizes_of_the_original_biformer_are_given_then_its_padding_is_ours() -> None:
    model, x = create("biformer_tiny", auto_pad=True), image(75, width=99)
    with torch.no_grad():
        assert torch.equal(model(x), create("biformer_tiny")(x))


def test_when_a_name_is_registered_then_weights_are_pulled_by_it_or_it_has_none() -> None:
    ours = [name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith("tsfm_vision.")]
    without = {"tnt_ti_patch16_224", "biformer_stl_nchw"} | {name for name in ours if name.startswith("ptnt_")}
    for name in ours:
        if name in without:
            with pytest.raises(InputError, match="unknown weights"):
                registry.get(name)
        else:
            assert registry.get(name).architecture == name


# timm's code that our families replace parts of, or call, though it is no public contract.
RELIED_ON = (
    metaformer.Downsampling,
    metaformer.MetaFormerBlock,
    metaformer.MetaFormerStage,
    metaformer.MetaFormer.__init__,
    metaformer.MetaFormer._init_weights,
    metaformer.MetaFormer.reset_classifier,
    metaformer.MetaFormer.prune_intermediate_layers,
    tnt.Attention,
    tnt.Block,
    tnt.PixelEmbed,
    tnt.TNT.__init__,
    tnt.TNT._init_weights,
    tnt.TNT.forward_head,
    tnt.TNT.reset_classifier,
    tnt.TNT.prune_intermediate_layers,
    _features.FeatureGetterNet,
    _features.feature_take_indices,
    _input.update_model_input_size,
    _builder.build_model_with_cfg,
    _registry.register_model,
    _hub.save_config_for_hf,
)


def digest(code: Any) -> str:
    """Of a class or function, as timm's file has it."""
    return hashlib.sha256(inspect.getsource(code).encode()).hexdigest()[:12]


# By versions of timm in which all of it is the same: the digest of the digests.
KNOWN = {"1.0.31": "56b0e9521490"}


def test_when_timm_is_of_another_version_then_its_code_that_ours_relies_on_is_known() -> None:
    found = hashlib.sha256("".join(map(digest, RELIED_ON)).encode()).hexdigest()[:12]
    assert found in KNOWN.values(), (
        f"timm {timm.__version__}, digest {found}, has other code than {', '.join(KNOWN)}: compare ours with the "
        "changed of " + ", ".join(code.__qualname__ for code in RELIED_ON)
    )
